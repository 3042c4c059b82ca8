//! Rules about ranks: how the run is spread over them, and what connects them.

use std::net::IpAddr;

use burn_titan_parallel::Mesh;
use burn_titan_parallel::launch::MOST_RANKS;

use super::Rules;
use crate::config::files::Wanted;
use crate::config::schema::{CommBackend, Config, DeviceKind, OptimizerKind, PipelineSchedule};

const REPLICATE: &str = "parallelism.data_parallel_replicate_degree";
const SHARD: &str = "parallelism.data_parallel_shard_degree";
const TENSOR: &str = "parallelism.tensor_parallel_degree";
const CONTEXT: &str = "parallelism.context_parallel_degree";
const PIPELINE: &str = "parallelism.pipeline_parallel_degree";
const EXPERT: &str = "parallelism.expert_parallel_degree";

impl Rules<'_> {
    pub(super) fn parallelism(&mut self) {
        let degrees = &self.config.parallelism;
        if degrees.data_parallel_shard_degree == 0 && self.usable(&[SHARD]) {
            let message = format!("`{SHARD}`: expected -1 or an integer of at least 1, found 0");
            return self.report(&[SHARD], &message, Some("-1 takes the ranks that are left"));
        }
        if !self.broken.touches("parallelism") {
            self.mesh();
            self.shared_tokens();
            self.split_matrices();
            self.schedule_file();
            self.whole_experts();
        }
    }

    /// Ranks that share sequences, or the tokens of a micro-batch, need some for each.
    fn shared_tokens(&mut self) {
        const SEQ: &str = "training.seq_len";
        const BATCH: &str = "training.local_batch_size";
        let Config { training, parallelism, .. } = self.config;
        let (seq, batch) = (training.seq_len, training.local_batch_size);
        let degree = |degree: i64| usize::try_from(degree).unwrap_or(1);
        let context = degree(parallelism.context_parallel_degree);
        let tensor = degree(parallelism.tensor_parallel_degree);
        if !self.usable(&[SEQ, BATCH, CONTEXT, TENSOR, EXPERT]) {
            return;
        }
        if context > 1 && seq < 2 * context {
            let message = format!(
                "{context} ranks share each sequence by two parts each, but it has only {seq} tokens"
            );
            let hint = format!("make `{SEQ}` at least {}, or lower `{CONTEXT}`", 2 * context);
            return self.report(&[CONTEXT, SEQ], &message, Some(&hint));
        }
        let fewest = batch.saturating_mul(seq / context);
        let experts = parallelism.expert_parallel_degree > 1;
        if (parallelism.enable_sequence_parallel || experts) && fewest < tensor {
            let message =
                format!("{tensor} ranks share the {fewest} tokens of a micro-batch: one has none");
            let hint = match experts {
                true => format!("raise `{SEQ}`, or lower `{TENSOR}`"),
                false => "set `parallelism.enable_sequence_parallel` to `false`".into(),
            };
            self.report(&[TENSOR, SEQ], &message, Some(&hint));
        }
    }

    /// Muon needs whole matrices, which it puts together of the shards of `dp_shard` and `cp` only.
    fn split_matrices(&mut self) {
        const NAME: &str = "optimizer.name";
        let Config { optimizer, parallelism, .. } = self.config;
        let groups = optimizer.groups.iter().filter_map(|group| group.name);
        let muon =
            std::iter::once(optimizer.name).chain(groups).any(|kind| kind == OptimizerKind::Muon);
        if muon && parallelism.tensor_parallel_degree > 1 && self.usable(&[NAME, TENSOR]) {
            let message = format!("`muon` needs whole matrices, but `{TENSOR}` splits them");
            let hint = format!("use `adamw`, or ranks of `{SHARD}` instead");
            self.report(&[NAME, TENSOR], &message, Some(&hint));
        }
    }

    /// Experts that are dealt out are not split by `tp` as well: its ranks have some each.
    fn whole_experts(&mut self) {
        let parallelism = &self.config.parallelism;
        let (expert, tensor) =
            (parallelism.expert_parallel_degree, parallelism.tensor_parallel_degree);
        if expert > 1 && expert % tensor.max(1) != 0 && self.usable(&[EXPERT, TENSOR]) {
            let message = format!(
                "`{EXPERT}` is {expert}, which is no multiple of `{TENSOR}` = {tensor}: ranks that \
                 split matrix products must have experts of their own"
            );
            let hint =
                format!("set `{EXPERT}` to 1, where `tp` splits each expert, or to {}", tensor);
            self.report(&[EXPERT, TENSOR], &message, Some(&hint));
        }
    }

    /// A schedule is named, or read from a file.
    fn schedule_file(&mut self) {
        const SCHEDULE: &str = "parallelism.pipeline_parallel_schedule";
        const FILE: &str = "parallelism.pipeline_parallel_schedule_csv";
        const STAGES: &str = "parallelism.pipeline_parallel_stages_per_rank";
        let parallelism = &self.config.parallelism;
        let schedule = parallelism.pipeline_parallel_schedule;
        let stages = parallelism.pipeline_parallel_stages_per_rank;
        match (schedule, &parallelism.pipeline_parallel_schedule_csv) {
            (PipelineSchedule::Csv, None) => {
                let message = format!("`{SCHEDULE}` is `csv`, so `{FILE}` is needed");
                let hint = "see docs/pipeline.md for what such a file holds";
                self.report(&[SCHEDULE], &message, Some(hint));
            }
            (PipelineSchedule::Csv, Some(path)) => {
                self.path(FILE, path, Wanted::File);
                if stages.is_some() {
                    let message = format!("`{STAGES}`: the file of the schedule says the stages");
                    self.report(&[STAGES], &message, Some("remove it"));
                }
            }
            (_, Some(_)) => {
                let message =
                    format!("`{FILE}` is given, but `{SCHEDULE}` is `{}`", schedule.name());
                let hint = format!("set `{SCHEDULE}` to `csv`, or remove the file");
                self.report(&[FILE, SCHEDULE], &message, Some(&hint));
            }
            (_, None) => {}
        }
    }

    /// Holds the degrees against the ranks that are started, where that is known.
    fn mesh(&mut self) {
        const KEYS: [&str; 6] = [SHARD, REPLICATE, TENSOR, CONTEXT, PIPELINE, EXPERT];
        let degrees = &self.config.parallelism;
        match self.checks.ranks {
            Some(ranks) => {
                if let Err(error) = Mesh::new(degrees.degrees(), ranks) {
                    let hint = "`--ranks N`, or the cluster, says how many are started";
                    self.report(&KEYS, &error.to_string(), Some(hint));
                }
            }
            None => {
                let ranks = [
                    degrees.data_parallel_replicate_degree,
                    degrees.data_parallel_shard_degree.max(1),
                    degrees.tensor_parallel_degree,
                    degrees.context_parallel_degree,
                    degrees.pipeline_parallel_degree,
                ];
                let ranks = ranks
                    .into_iter()
                    .fold(1_i128, |product, degree| product.saturating_mul(i128::from(degree)));
                if ranks > MOST_RANKS as i128 {
                    let message =
                        format!("{ranks} ranks are too many: at most {MOST_RANKS} are possible");
                    self.report(&KEYS, &message, None);
                }
            }
        }
    }

    /// Ranks that share a global batch, if the degrees are sound; -1 counts as 1 where nothing says how many
    /// ranks are started.
    pub(super) fn data_parallel_ranks(&self) -> Option<usize> {
        if self.broken.touches("parallelism") {
            return None;
        }
        let degrees = &self.config.parallelism;
        match self.checks.ranks {
            Some(ranks) => Some(Mesh::new(degrees.degrees(), ranks).ok()?.data_parallel()),
            None => {
                let replicate = usize::try_from(degrees.data_parallel_replicate_degree).ok()?;
                let shard = usize::try_from(degrees.data_parallel_shard_degree.max(1)).ok()?;
                replicate.checked_mul(shard)
            }
        }
    }

    pub(super) fn comm(&mut self) {
        const BACKEND: &str = "comm.backend";
        const LISTEN: &str = "comm.listen_address";
        const LINK: &str = "debug.link_mbit_per_second";
        let (comm, debug) = (&self.config.comm, &self.config.debug);
        let name = comm.backend.name();
        if !comm.backend.is_built() && self.usable(&[BACKEND]) {
            let message = format!("`{BACKEND}`: this build has no `{name}`");
            let hint = format!("build with `--features {name}`, or use `auto`");
            self.report(&[BACKEND], &message, Some(&hint));
        }
        if let Some(address) = &comm.listen_address
            && address.parse::<IpAddr>().is_err()
            && self.usable(&[LISTEN])
        {
            let message = format!("`{LISTEN}`: expected an IP address, found `{address}`");
            let hint = "for example `10.0.0.5`, or `0.0.0.0` for all interfaces";
            self.report(&[LISTEN], &message, Some(hint));
        }
        let (device, offload) =
            (self.config.training.device, self.config.training.enable_cpu_offload);
        let on_gpu = device == DeviceKind::Cuda && !offload;
        const PLACE: [&str; 3] = [BACKEND, "training.device", "training.enable_cpu_offload"];
        if comm.backend == CommBackend::Nccl && !on_gpu && self.usable(&PLACE) {
            let message = format!("`{BACKEND}`: `nccl` exchanges the memory of GPUs");
            let hint = "it needs `training.device: cuda`, and no `training.enable_cpu_offload`";
            self.report(&PLACE, &message, Some(hint));
        }
        let own = matches!(comm.backend, CommBackend::Auto | CommBackend::Tcp);
        if debug.link_mbit_per_second.is_some() && !own && self.usable(&[BACKEND, LINK]) {
            let message = format!("`{LINK}` limits the backend `tcp`, but `{BACKEND}` is `{name}`");
            self.report(&[LINK], &message, Some("remove one of them"));
        }
    }
}
