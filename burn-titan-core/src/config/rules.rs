//! Rules across fields, for a config whose single values are right.
//!
//! Each rule names the keys it reads; it is left out where one of them is broken, because what the
//! file meant is not known then.

mod ranks;

use std::path::Path;

use super::diagnose::Broken;
use super::draft::Checks;
use super::files::{self, Wanted};
use super::pattern::NamePattern;
use super::problem::Problems;
use super::schema::{
    ActivationCheckpointMode, Config, ReshardAfterForward, SourceConfig, SourceFormat,
};
use super::source::SourceMap;

/// Most tokens of a micro-batch, 2^24: their logits alone would fill any device.
const MAX_MICRO_BATCH_TOKENS: usize = 1 << 24;

/// Most micro-batches of a step. The program of a step lists the work of each.
const MAX_MICRO_BATCHES: usize = 1 << 16;

/// Adds everything that is wrong across the fields of `config` to `problems`.
pub(super) fn check(
    config: &Config,
    source: &SourceMap,
    broken: &Broken,
    problems: &mut Problems,
    checks: Checks,
) {
    let mut rules = Rules { config, source, broken, problems, checks };
    rules.run_name();
    rules.data();
    rules.micro_batch();
    rules.global_batch();
    rules.optimizer_eps();
    rules.warmup();
    rules.validation();
    rules.optimizer_groups();
    rules.parallelism();
    rules.reshard();
    rules.comm();
    rules.initial_weights();
}

struct Rules<'a> {
    config: &'a Config,
    source: &'a SourceMap,
    broken: &'a Broken,
    problems: &'a mut Problems,
    checks: Checks,
}

impl Rules<'_> {
    fn usable(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|key| self.broken.covers(key))
    }

    /// A problem with the first of `keys` that is given.
    fn report(&mut self, keys: &[&str], message: &str, hint: Option<&str>) {
        let source = self.source;
        self.problems.push(|| source.problem_of(keys, message, hint));
    }

    fn run_name(&mut self) {
        let name = &self.config.run.name;
        let plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str())
            && !name.contains(['/', '\\', ':'])
            && !name.contains(char::is_control);
        if self.usable(&["run.name"]) && !plain {
            let message = format!("`run.name`: `{name}` is not a plain file name");
            let hint = "it names the output folder; set `run.output_dir` to write elsewhere";
            self.report(&["run.name"], &message, Some(hint));
        }
    }

    fn data(&mut self) {
        let data = &self.config.data;
        let lists = [("data.train", &data.train), ("data.validation", &data.validation)];
        let mut text_source = None;
        for (list, sources) in lists {
            for (i, source) in sources.iter().enumerate() {
                let key = format!("{list}[{i}]");
                if self.source_is_text(source, &key) {
                    text_source.get_or_insert(key);
                }
            }
        }
        self.tokenizer(text_source);
    }

    /// Checks one source and tells whether it is text, which needs a tokenizer.
    fn source_is_text(&mut self, source: &SourceConfig, key: &str) -> bool {
        let (path_key, format_key) = (format!("{key}.path"), format!("{key}.format"));
        if !self.usable(&[&path_key]) {
            return false;
        }
        self.path(&path_key, &source.path, Wanted::Either);
        if !self.usable(&[&format_key]) {
            return false;
        }
        let format = match source.format {
            SourceFormat::Auto => SourceFormat::of_path(&source.path),
            format => Some(format),
        };
        // A folder's files each say their own format.
        let is_folder =
            source.path.extension().is_none() || (self.checks.files && source.path.is_dir());
        if format.is_none() && !is_folder {
            let shown = source.path.display();
            let message = format!("the name `{shown}` does not say how the file is read");
            let hint = "set its `format` to `jsonl`, `text` or `tokens`";
            self.report(&[&path_key], &message, Some(hint));
        }
        matches!(format, Some(SourceFormat::Jsonl | SourceFormat::Text))
    }

    fn tokenizer(&mut self, text_source: Option<String>) {
        const KEY: &str = "data.tokenizer";
        if !self.usable(&[KEY]) {
            return;
        }
        let data = &self.config.data;
        if let Some(path) = &data.tokenizer {
            return self.path(KEY, path, Wanted::File);
        }
        if let Some(source) = text_source {
            let message = format!("`{source}` is text, so `{KEY}` is needed");
            let hint = "name a `tokenizer.json`; `burn-titan tokenizer train` makes one";
            self.report(&[KEY, &format!("{source}.path")], &message, Some(hint));
        }
        let tokens = [
            ("data.bos_token", data.bos_token.is_some()),
            ("data.eos_token", data.eos_token.is_some()),
        ];
        for (key, given) in tokens {
            if given && self.usable(&[key]) {
                let message = format!("`{key}` is given by its text, so `{KEY}` is needed");
                self.report(
                    &[key],
                    &message,
                    Some("name the `tokenizer.json` that has this token"),
                );
            }
        }
    }

    fn micro_batch(&mut self) {
        const KEYS: [&str; 2] = ["training.local_batch_size", "training.seq_len"];
        let training = &self.config.training;
        let (local, seq_len) = (training.local_batch_size, training.seq_len);
        let tokens = local.checked_mul(seq_len);
        if !self.usable(&KEYS) || tokens.is_some_and(|tokens| tokens <= MAX_MICRO_BATCH_TOKENS) {
            return;
        }
        let message = format!(
            "a micro-batch of {local} x {seq_len} tokens is too large: at most \
             {MAX_MICRO_BATCH_TOKENS} tokens are possible"
        );
        let hint = "lower `training.local_batch_size` or `training.seq_len`";
        self.report(&KEYS, &message, Some(hint));
    }

    fn global_batch(&mut self) {
        const KEYS: [&str; 2] = ["training.global_batch_size", "training.local_batch_size"];
        let local = self.config.training.local_batch_size;
        let Some(global) = self.config.training.global_batch_size else { return };
        let Some(ranks) = self.data_parallel_ranks() else { return };
        let Some(unit) = local.checked_mul(ranks).filter(|unit| *unit > 0) else { return };
        if !self.usable(&KEYS) {
            return;
        }
        if global / unit > MAX_MICRO_BATCHES {
            let message = format!(
                "a global batch of {global} sequences is {} micro-batches of {unit}, but at most \
                 {MAX_MICRO_BATCHES} are possible",
                global / unit
            );
            let hint = "lower `training.global_batch_size`, or raise `training.local_batch_size`";
            return self.report(&KEYS, &message, Some(hint));
        }
        if global % unit == 0 {
            return;
        }
        let message = format!(
            "a global batch of {global} sequences is not a multiple of local_batch_size x \
             data-parallel ranks = {local} x {ranks} = {unit}"
        );
        let below = global - global % unit;
        let hint = match (below, below.checked_add(unit)) {
            (0, _) => format!("use {unit}"),
            (_, Some(above)) => format!("use {below} or {above}"),
            (_, None) => format!("use {below}"),
        };
        self.report(&KEYS, &message, Some(&hint));
    }

    /// The optimizer divides by it in single precision, where a smaller number is 0.
    fn optimizer_eps(&mut self) {
        const KEY: &str = "optimizer.eps";
        let eps = self.config.optimizer.eps;
        let single = eps as f32;
        if self.usable(&[KEY]) && !(single.is_finite() && single >= f32::MIN_POSITIVE) {
            let message = format!(
                "`{KEY}`: expected a number from {:e} to {:e} (single precision), found {eps:e}",
                f32::MIN_POSITIVE,
                f32::MAX
            );
            self.report(&[KEY], &message, Some("1e-8 is usual"));
        }
    }

    fn warmup(&mut self) {
        const KEYS: [&str; 2] = ["lr_scheduler.warmup_steps", "training.steps"];
        let (warmup, steps) = (self.config.lr_scheduler.warmup_steps, self.config.training.steps);
        if self.usable(&KEYS) && warmup > 0 && warmup >= steps {
            let plural = if warmup == 1 { "" } else { "s" };
            let message = format!(
                "warm-up ({warmup} step{plural}) must be shorter than the run \
                 (training.steps = {steps})"
            );
            let hint = "lower it; `lr_scheduler.warmup_steps=0` is no warm-up";
            self.report(&KEYS, &message, Some(hint));
        }
    }

    fn validation(&mut self) {
        const KEYS: [&str; 2] = ["validation.enable", "data.validation"];
        let Config { validation, data, .. } = self.config;
        if self.usable(&KEYS) && validation.enable && data.validation.is_empty() {
            let message = "`validation.enable` needs sources in `data.validation`, which has none";
            let hint = "add one, or set `validation.enable` to `false`";
            self.report(&KEYS, message, Some(hint));
        }
    }

    fn optimizer_groups(&mut self) {
        for (i, group) in self.config.optimizer.groups.iter().enumerate() {
            let key = format!("optimizer.groups[{i}].pattern");
            if !self.usable(&[&key]) {
                continue;
            }
            if let Err(error) = NamePattern::parse(&group.pattern) {
                let hint = "`*` matches within one part of a name, `**` any number of parts, \
                            `{a,b}` either";
                self.report(&[&key], &error.to_string(), Some(hint));
            }
        }
    }

    /// A graph that is kept for the backward holds the parameters, whether the unit does or not.
    fn reshard(&mut self) {
        const KEYS: [&str; 2] =
            ["parallelism.fsdp_reshard_after_forward", "activation_checkpoint.mode"];
        let always =
            self.config.parallelism.fsdp_reshard_after_forward == ReshardAfterForward::Always;
        let keeps = self.config.activation_checkpoint.mode == ActivationCheckpointMode::None;
        if always && keeps && self.usable(&KEYS) {
            let message = "`parallelism.fsdp_reshard_after_forward: always` frees nothing without \
                           activation checkpointing: what a forward keeps holds the parameters";
            let hint = "set `activation_checkpoint.mode` to `full`, or the former to `default`";
            self.report(&KEYS, message, Some(hint));
        }
    }

    fn initial_weights(&mut self) {
        const KEY: &str = "model.initial_hf";
        if let (Some(path), true) = (&self.config.model.initial_hf, self.usable(&[KEY])) {
            self.path(KEY, path, Wanted::Folder);
        }
    }

    fn path(&mut self, key: &str, path: &Path, wanted: Wanted) {
        if !self.checks.files {
            return;
        }
        if let Some((message, hint)) = files::check(path, wanted) {
            self.report(&[key], &message, hint.as_deref());
        }
    }
}
