//! All checks of a run before any tensor exists.

use std::path::Path;

use burn_titan_parallel::Mesh;

use super::pipeline;
use crate::config::{
    Checks, ComputeDtype, Config, ConfigErrors, DataConfig, DeviceKind, Draft, ModelConfig, nearest,
};
use crate::data::Tokenizer;
use crate::hf::HfFolder;
use crate::model::{
    ExpertRank, FieldProblem, Model, ModelError, ModelFamily, PlanError, Registry, TensorRank,
};
use crate::optim::{OptimizerError, parameter_rules};
use crate::plan::fewest_ranks;

/// Forwards of units in one step at most: the step's program is made before it runs.
const MAX_FORWARDS: usize = 10_000_000;

/// The flavor that takes the sizes from `model.initial_hf`.
pub const HF_FLAVOR: &str = "hf";

/// A config that was found sound, and its model's skeleton.
pub struct Prepared {
    /// The config.
    pub config: Config,
    /// The model; holds no tensor.
    pub model: Model,
}

/// Reads a config with its overrides and checks it as a whole: the file, the model's own rules, the
/// optimizer's groups, the tokenizer against the model, the degrees of the parallelism against the `ranks`
/// that are started (`None`: any number that the degrees make).
///
/// # Errors
/// Every problem, each with its place.
pub fn prepare(
    path: &Path,
    overrides: &[String],
    registry: &Registry,
    ranks: Option<usize>,
) -> Result<Prepared, ConfigErrors> {
    let checks = Checks { ranks, ..Checks::default() };
    check(Draft::read(path, overrides, checks), registry, ranks)
}

fn check(
    mut draft: Draft,
    registry: &Registry,
    ranks: Option<usize>,
) -> Result<Prepared, ConfigErrors> {
    let mut problems = Vec::new();
    let mut model = None;
    if draft.is_sound("model") {
        let mut wanted = draft.config().model.clone();
        // A folder that is not there is among the problems already.
        let missing = wanted.initial_hf.take_if(|path| !path.is_dir()).is_some();
        if !(missing && wanted.flavor == HF_FLAVOR) {
            match initial_model(&wanted, registry) {
                Ok(found) => model = Some(found),
                Err(found) => problems = found,
            }
        }
    }
    if let Some(model) = &model {
        problems.extend(fit(&draft, model, ranks));
    }
    if draft.is_sound("training.device") && draft.is_sound("precision.compute") {
        problems.extend(dtype_problem(draft.config()));
    }
    for FieldProblem { key, message, hint } in problems {
        draft.report(&key, &message, hint.as_deref());
    }
    let config = draft.finish()?.config;
    match model {
        Some(model) => Ok(Prepared { config, model }),
        None => unreachable!("a config without a model has problems"),
    }
}

/// The model that a config's `model` section describes.
///
/// # Errors
/// Every problem, each with its key.
pub fn initial_model(
    config: &ModelConfig,
    registry: &Registry,
) -> Result<Model, Vec<FieldProblem>> {
    let one = |key: &str, message: String, hint: Option<String>| {
        vec![FieldProblem { key: key.into(), message, hint }]
    };
    let family = family(registry, &config.name).map_err(|e| {
        let hint = nearest(&config.name, registry.names())
            .map(|name| format!("did you mean `{name}`?"))
            .unwrap_or_else(|| format!("expected one of `{}`", registry.names().join("`, `")));
        one("model.name", e.to_string(), Some(hint))
    })?;
    let from_hf = match &config.initial_hf {
        Some(path) => {
            let folder =
                HfFolder::open(path).map_err(|e| one("model.initial_hf", e.to_string(), None))?;
            let sizes = family
                .config_from_hf(&folder)
                .map_err(|e| one("model.initial_hf", e.to_string(), None))?;
            Some(sizes)
        }
        None => None,
    };
    let sizes = match (config.flavor.as_str(), &from_hf) {
        (HF_FLAVOR, Some(sizes)) => family.change(sizes, &config.overrides)?,
        (HF_FLAVOR, None) => {
            let message = "the flavor `hf` needs model.initial_hf".to_string();
            return Err(one("model.flavor", message, Some("name the folder there".into())));
        }
        (flavor, _) => family.resolve(flavor, &config.overrides)?,
    };
    let model = family.build(&sizes, &config.attention)?;
    let difference = from_hf.and_then(|hf| model.first_difference(&hf));
    let Some((field, theirs, ours)) = difference else { return Ok(model) };
    let message = format!("the weights have {field} = {theirs}, the config {ours}");
    Err(match config.overrides.contains_key(&field) {
        true => {
            one(&format!("model.overrides.{field}"), message, Some(format!("set it to {theirs}")))
        }
        false => {
            let hint = "`model.flavor: hf` takes the sizes from the folder".to_string();
            one("model.initial_hf", message, Some(hint))
        }
    })
}

/// What of the rest of the config does not fit the model.
fn fit(draft: &Draft, model: &Model, ranks: Option<usize>) -> Vec<FieldProblem> {
    let mut problems = Vec::new();
    let config = draft.config();
    let mut report = |key: &str, message: String, hint: Option<&str>| {
        problems.push(FieldProblem { key: key.into(), message, hint: hint.map(String::from) });
    };
    let seq_len = config.training.seq_len;
    if draft.is_sound("training.seq_len") && seq_len > model.max_seq_len {
        let message = format!(
            "`training.seq_len` is {seq_len} tokens, but the model is made for at most {}",
            model.max_seq_len
        );
        let hint = "shorten the sequences, or raise model.overrides.max_seq_len";
        report("training.seq_len", message, Some(hint));
    }
    let mesh = ranks.and_then(|ranks| Mesh::new(config.parallelism.degrees(), ranks).ok());
    let data_parallel = mesh.map_or(1, |mesh| mesh.data_parallel());
    let together = config.training.local_batch_size.saturating_mul(data_parallel);
    let micro_batches = config.training.global_batch_size.unwrap_or(0) / together.max(1);
    if draft.is_sound("training") && micro_batches.saturating_mul(model.units.len()) > MAX_FORWARDS
    {
        let message = format!(
            "{micro_batches} micro-batches of {} units make a step of more than {MAX_FORWARDS} forwards",
            model.units.len()
        );
        let hint = "raise training.local_batch_size, or lower training.global_batch_size";
        report("training.global_batch_size", message, Some(hint));
    }
    if draft.is_sound("parallelism") {
        split_problems(config, model, ranks, &mut report);
    }
    if draft.is_sound("optimizer") {
        match parameter_rules(&config.optimizer, &model.parameters()) {
            // A malformed pattern is among the problems already.
            Ok(_) | Err(OptimizerError::Pattern { .. }) => {}
            Err(error) => {
                let hint = "see optimizer.groups in docs/configuration.md";
                report(&error.key(), error.to_string(), Some(hint));
            }
        }
    }
    // A missing file is among the problems already.
    if draft.is_sound("data")
        && let Some(path) = config.data.tokenizer.as_ref().filter(|path| path.is_file())
    {
        match Tokenizer::from_file(path) {
            Err(error) => report("data.tokenizer", error.to_string(), None),
            Ok(tokenizer) => fit_tokenizer(&config.data, &tokenizer, model, &mut report),
        }
    }
    problems
}

/// What of the model cannot be split as the degrees say.
fn split_problems(
    config: &Config,
    model: &Model,
    ranks: Option<usize>,
    report: &mut impl FnMut(&str, String, Option<&str>),
) {
    const PIPELINE: &str = "parallelism.pipeline_parallel_degree";
    let ranks = ranks.unwrap_or_else(|| fewest_ranks(config));
    if let Ok(mesh) = Mesh::new(config.parallelism.degrees(), ranks)
        && let Err(error) = pipeline(config, model, &mesh)
    {
        let hint = "see docs/pipeline.md";
        report(PIPELINE, format!("`{PIPELINE}`: {error}"), Some(hint));
    }
    const EXPERT: &str = "parallelism.expert_parallel_degree";
    const TENSOR: &str = "parallelism.tensor_parallel_degree";
    const CONTEXT: &str = "parallelism.context_parallel_degree";
    let degree = |degree: i64| usize::try_from(degree).unwrap_or(1).max(1);
    let tensor = degree(config.parallelism.tensor_parallel_degree);
    let context = degree(config.parallelism.context_parallel_degree);
    let first = TensorRank { rank: 0, ranks: tensor, sequence: false };
    let expert = Mesh::new(config.parallelism.degrees(), ranks);
    let expert = expert.map_or(ExpertRank::ALONE, |mesh| ExpertRank::of(&mesh, 0));
    match model.cuts(first, expert) {
        Ok(_) => {}
        Err(error @ PlanError::Experts { .. }) => {
            let message = format!("`{EXPERT}` is {}, but {error}", expert.ranks);
            report(EXPERT, message, Some("choose a divisor of the number of experts"));
        }
        Err(error) => {
            let message = format!("`{TENSOR}` is {tensor}, but {error}");
            report(TENSOR, message, Some("lower it, or mend the model's plan"));
        }
    }
    if config.parallelism.expert_parallel_degree > 1 && model.experts.is_none() {
        let degree = config.parallelism.expert_parallel_degree;
        let message = format!("`{EXPERT}` is {degree}, but the model has no experts");
        report(EXPERT, message, Some("set it to 1"));
    }
    if context > 1 && !model.shares_sequences {
        let attention = &config.model.attention;
        let message = format!(
            "`{CONTEXT}` is {context}, but the attention `{attention}` sees only the keys of its own rank"
        );
        let hint = "an attention that calls `Context::attention` may say so by `SHARES_SEQUENCES`";
        report(CONTEXT, message, Some(hint));
    }
}

/// What of the tokenizer does not fit the model, or the config the tokenizer.
fn fit_tokenizer(
    data: &DataConfig,
    tokenizer: &Tokenizer,
    model: &Model,
    report: &mut impl FnMut(&str, String, Option<&str>),
) {
    let (tokens, vocab_size) = (tokenizer.vocab_size(), model.vocab_size);
    if tokens > vocab_size {
        let message = format!("the tokenizer has {tokens} tokens, but the model only {vocab_size}");
        let hint = "use the model's own tokenizer, or raise model.overrides.vocab_size";
        report("data.tokenizer", message, Some(hint));
    }
    for (key, text) in [("data.bos_token", &data.bos_token), ("data.eos_token", &data.eos_token)] {
        if let Some(Err(error)) = text.as_ref().map(|text| tokenizer.token_id(text)) {
            report(key, error.to_string(), None);
        }
    }
}

/// WGSL, the language of the wgpu device, has no bfloat16.
fn dtype_problem(config: &Config) -> Option<FieldProblem> {
    let wgpu = config.training.device == DeviceKind::Wgpu;
    (wgpu && config.precision.compute == ComputeDtype::Bfloat16).then(|| FieldProblem {
        key: "precision.compute".into(),
        message: "the device `wgpu` cannot compute in `bfloat16`: WGSL does not have it".into(),
        hint: Some("use precision.compute=float32".into()),
    })
}

/// The family of a name.
///
/// # Errors
/// If none is registered under it.
pub fn family<'a>(registry: &'a Registry, name: &str) -> Result<&'a dyn ModelFamily, ModelError> {
    registry.get(name).ok_or_else(|| ModelError::new(format!("no model is registered as `{name}`")))
}
