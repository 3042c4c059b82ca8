//! The section `parallelism`: how the run is spread over ranks.

use std::path::PathBuf;

use burn_titan_parallel::Degrees;
use burn_titan_parallel::pipeline::Family;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the run is spread over ranks. The product of the degrees is the number of ranks, but for expert parallelism,
/// which borrows ranks of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelismConfig {
    /// Copies of the sharded model (HSDP, DDP), in ranks.
    #[schemars(range(min = 1))]
    pub data_parallel_replicate_degree: i64,
    /// Ranks that share one copy of the parameters (FSDP); -1 takes the ranks that are left.
    #[schemars(range(min = -1))]
    pub data_parallel_shard_degree: i64,
    /// Ranks that share each matrix product.
    #[schemars(range(min = 1))]
    pub tensor_parallel_degree: i64,
    /// Ranks of the pipeline, each of which has some of the units.
    #[schemars(range(min = 1))]
    pub pipeline_parallel_degree: i64,
    /// The order in which the ranks of the pipeline compute; see `docs/pipeline.md`.
    pub pipeline_parallel_schedule: PipelineSchedule,
    /// The schedule `csv`: a file with a row for each rank and a cell for each step, as torchtitan has it.
    pub pipeline_parallel_schedule_csv: Option<PathBuf>,
    /// Stages that each rank of the pipeline has. Default: 2 where the schedule is for several, else 1.
    #[schemars(range(min = 1, max = 64))]
    pub pipeline_parallel_stages_per_rank: Option<usize>,
    /// The units that begin the stages, but for the first, as in `[layers.2, layers.4]`; none for stages of equal cost.
    pub pipeline_parallel_first_units: Vec<String>,
    /// Ranks that share each sequence.
    #[schemars(range(min = 1))]
    pub context_parallel_degree: i64,
    /// Ranks that have all experts together, some each; they are those of `dp_shard`, `cp` and `tp`. 1: every rank has a
    /// part of every expert, as of other parameters. Else a multiple of the degree of `tp`.
    #[schemars(range(min = 1))]
    pub expert_parallel_degree: i64,
    /// When the full parameters of a unit are freed, where ranks share them.
    pub fsdp_reshard_after_forward: ReshardAfterForward,
    /// Whether gradients are reduced after every micro-batch (less memory, ZeRO-2 and 3) or once a step, after
    /// the last one (less communication, DDP and ZeRO-1). Default: `true` where parameters are shared.
    pub reduce_every_micro_batch: Option<bool>,
    /// Whether the ranks that share matrix products also share the tokens between them (norms, residuals): less
    /// memory, and as much communication.
    pub enable_sequence_parallel: bool,
    /// Whether each of the ranks that share matrix products has the logits of a part of the vocabulary only; else it
    /// has the whole output matrix while it computes the loss.
    pub enable_loss_parallel: bool,
    /// Chunks of tokens in which ranks that share matrix products run what treats every token alone, as a
    /// feed-forward does, so that the exchange of one chunk runs while another is computed; 1 for no chunks.
    #[schemars(range(min = 1, max = 1024))]
    pub async_tensor_parallel_chunks: usize,
    /// How the ranks that share each sequence exchange keys and values.
    pub context_parallel_method: ContextParallelMethod,
}

/// A schedule of pipeline parallelism.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PipelineSchedule {
    /// All forwards, then all backwards (Huang et al., 2019).
    #[serde(rename = "gpipe")]
    GPipe,
    /// One forward, one backward (Narayanan et al., 2019).
    #[default]
    #[serde(rename = "1f1b")]
    OneForwardOneBackward,
    /// The same with several stages a rank (Narayanan et al., 2021).
    #[serde(rename = "interleaved_1f1b")]
    Interleaved,
    /// Stage by stage (Lamy-Poirier, 2023).
    #[serde(rename = "looped_bfs")]
    LoopedBreadthFirst,
    /// The gradients of weights fill the bubble (Qi et al., 2023).
    #[serde(rename = "zb1p")]
    ZeroBubble,
    /// The same with two stages a rank, as a V (Qi et al., 2024).
    #[serde(rename = "zbv")]
    ZeroBubbleV,
    /// Forwards beside backwards, two stages a rank, as a V (DeepSeek-AI, 2024).
    #[serde(rename = "dualpipev")]
    DualPipeV,
    /// Read from the file `pipeline_parallel_schedule_csv`.
    #[serde(rename = "csv")]
    Csv,
}

impl PipelineSchedule {
    /// The schedule that is built in; `None` for one that is read from a file.
    pub fn family(self) -> Option<Family> {
        Some(match self {
            Self::GPipe => Family::GPipe,
            Self::OneForwardOneBackward => Family::OneForwardOneBackward,
            Self::Interleaved => Family::Interleaved,
            Self::LoopedBreadthFirst => Family::LoopedBreadthFirst,
            Self::ZeroBubble => Family::ZeroBubble,
            Self::ZeroBubbleV => Family::ZeroBubbleV,
            Self::DualPipeV => Family::DualPipeV,
            Self::Csv => return None,
        })
    }

    /// Its name in a config.
    pub fn name(self) -> &'static str {
        self.family().map_or("csv", Family::name)
    }
}

/// How ranks that share a sequence exchange keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContextParallelMethod {
    /// Blocks of them go around, from rank to rank, while each rank computes with the one at hand (Liu et al.,
    /// 2023): no rank ever has more than two.
    #[default]
    Ring,
    /// Every rank gathers all of them (as for Llama 3): one exchange instead of many, and more memory.
    AllGather,
}

/// When the full parameters of a unit are freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReshardAfterForward {
    /// As `always` with full activation checkpointing, as `never` without: the graph of a forward that is kept
    /// holds the parameters.
    #[default]
    Default,
    /// After each forward and each backward (ZeRO-3): they are gathered again for the backward. Needs
    /// `activation_checkpoint.mode: full`.
    Always,
    /// After the last backward of the step (ZeRO-1 and 2).
    Never,
}

impl Default for ParallelismConfig {
    fn default() -> Self {
        Self {
            data_parallel_replicate_degree: 1,
            data_parallel_shard_degree: -1,
            tensor_parallel_degree: 1,
            pipeline_parallel_degree: 1,
            pipeline_parallel_schedule: PipelineSchedule::default(),
            pipeline_parallel_schedule_csv: None,
            pipeline_parallel_stages_per_rank: None,
            pipeline_parallel_first_units: vec![],
            context_parallel_degree: 1,
            expert_parallel_degree: 1,
            fsdp_reshard_after_forward: ReshardAfterForward::default(),
            reduce_every_micro_batch: None,
            enable_sequence_parallel: true,
            enable_loss_parallel: true,
            async_tensor_parallel_chunks: 1,
            context_parallel_method: ContextParallelMethod::default(),
        }
    }
}

impl ParallelismConfig {
    /// Stages that each rank of the pipeline has with a schedule that is built in.
    pub fn pipeline_stages_per_rank(&self, family: Family) -> usize {
        let looped = matches!(family, Family::Interleaved | Family::LoopedBreadthFirst);
        let usual = family.stages_per_rank().map_or(if looped { 2 } else { 1 }, |(each, _)| each);
        self.pipeline_parallel_stages_per_rank.unwrap_or(usual)
    }

    /// The degrees of the mesh.
    pub fn degrees(&self) -> Degrees {
        Degrees {
            pipeline: self.pipeline_parallel_degree,
            data_replicate: self.data_parallel_replicate_degree,
            data_shard: self.data_parallel_shard_degree,
            context: self.context_parallel_degree,
            tensor: self.tensor_parallel_degree,
            expert: self.expert_parallel_degree,
        }
    }
}
