//! The one typed schema of a run's YAML.
//!
//! A field's docstring is its help: `burn-titan schema`, `docs/configuration.md` and the messages of
//! `validate` are all derived from this file. Sizes say their unit.

mod comm;
mod data;
mod optimizer;

use std::path::PathBuf;

use burn_titan_parallel::Degrees;
use burn_titan_parallel::pipeline::Family;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use comm::*;
pub use data::*;
pub use optimizer::*;

/// One training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the run is called and where it writes.
    pub run: RunConfig,
    /// Which model is trained.
    pub model: ModelConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// How long, on which device, with which batch.
    pub training: TrainingConfig,
    /// Number formats.
    pub precision: PrecisionConfig,
    /// The optimizer and its parameter groups.
    pub optimizer: OptimizerConfig,
    /// Warm-up, stable and decay phases of the learning rate.
    pub lr_scheduler: LrSchedulerConfig,
    /// What is kept between forward and backward.
    pub activation_checkpoint: ActivationCheckpointConfig,
    /// How the run is spread over ranks.
    pub parallelism: ParallelismConfig,
    /// How ranks exchange tensors.
    pub comm: CommConfig,
    /// Saving and resuming.
    pub checkpoint: CheckpointConfig,
    /// The loss on held-out data.
    pub validation: ValidationConfig,
    /// What is logged.
    pub metrics: MetricsConfig,
    /// For experiments.
    pub debug: DebugConfig,
}

/// What the run is called and where it writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run, used for the default output folder.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Folder for everything the run writes. Default: `outputs/<name>`.
    pub output_dir: Option<PathBuf>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { name: "run".into(), output_dir: None }
    }
}

/// Which model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Registered name of the model, for example `llama3`.
    pub name: String,
    /// Size of the model, one of those the model offers, for example `debug` or `8b`; `hf` takes the
    /// sizes from `model.initial_hf`.
    pub flavor: String,
    /// Registered name of the attention module that the blocks use.
    pub attention: String,
    /// Hugging Face folder whose weights the run starts from. Default: random initial weights.
    pub initial_hf: Option<PathBuf>,
    /// Fields of the flavor to change, for example `{n_layers: 2, vocab_size: 331}`.
    pub overrides: serde_json::Map<String, serde_json::Value>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: "llama3".into(),
            flavor: "debug".into(),
            attention: "fused".into(),
            initial_hf: None,
            overrides: Default::default(),
        }
    }
}

/// How long, on which device, with which batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimizer steps.
    #[schemars(range(min = 1))]
    pub steps: usize,
    /// Seed of initial weights and of the order of data.
    pub seed: u64,
    /// Device the run computes on.
    pub device: DeviceKind,
    /// Length of a training sequence, in tokens.
    #[schemars(range(min = 1))]
    pub seq_len: usize,
    /// Sequences a rank runs at once (a micro-batch), in sequences.
    #[schemars(range(min = 1))]
    pub local_batch_size: usize,
    /// Sequences of one optimizer step over all ranks, in sequences. Default: `local_batch_size` times
    /// the data-parallel ranks. More than that is reached by gradient accumulation.
    #[schemars(range(min = 1))]
    pub global_batch_size: Option<usize>,
    /// Gradients are scaled down to this global L2 norm; 0 turns clipping off.
    #[schemars(range(min = 0.0))]
    pub max_grad_norm: f64,
    /// What happens when a loss or a gradient is not finite.
    pub on_non_finite: OnNonFinite,
    /// Whether master weights, gradients and the optimizer's state rest in the host's memory, and updates run
    /// there: the device holds only what it computes with.
    pub enable_cpu_offload: bool,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            seed: 42,
            device: DeviceKind::default(),
            seq_len: 512,
            local_batch_size: 4,
            global_batch_size: None,
            max_grad_norm: 1.0,
            on_non_finite: OnNonFinite::default(),
            enable_cpu_offload: false,
        }
    }
}

/// Device a run computes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The CPU, by native SIMD code.
    #[default]
    Flex,
    /// A GPU through WebGPU (Vulkan, Metal, DX12), or a software adapter such as lavapipe.
    Wgpu,
    /// An NVIDIA GPU; needs a build with the feature `cuda`.
    Cuda,
}

/// What happens when a loss or a gradient is not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// The run ends with an error that names the step, the documents and the unit.
    #[default]
    Stop,
    /// The step is skipped (no parameter changes) and logged.
    Skip,
}

/// Number formats.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrecisionConfig {
    /// Format of activations and of the weights they meet. Master weights, gradients and optimizer
    /// state stay `float32`.
    pub compute: ComputeDtype,
    /// Format in which gradients are sent to be summed over ranks. They are accumulated over micro-batches in
    /// `float32`.
    pub reduce: ReduceDtype,
}

/// Format of activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDtype {
    /// IEEE single precision.
    #[default]
    Float32,
    /// bfloat16: 8 bits of exponent, 8 of precision.
    Bfloat16,
}

/// Format of gradients while they are summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReduceDtype {
    /// IEEE single precision.
    #[default]
    Float32,
    /// bfloat16: half the bytes, added up in `float32` and rounded.
    Bfloat16,
}

/// What is kept between forward and backward.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActivationCheckpointConfig {
    /// Whether a unit's activations are kept or computed again.
    pub mode: ActivationCheckpointMode,
}

/// Whether a unit's activations are kept or computed again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointMode {
    /// All activations are kept.
    #[default]
    None,
    /// Only each unit's input is kept; its forward runs again before its backward.
    Full,
}

/// How the run is spread over ranks. The product of the degrees is the number of ranks. Expert
/// parallelism is not there yet: any other degree of it but 1 is refused.
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
    /// Stages that each rank of the pipeline has. Default: 2 where the schedule is for several, else 1.
    #[schemars(range(min = 1, max = 64))]
    pub pipeline_parallel_stages_per_rank: Option<usize>,
    /// The units that begin the stages, but for the first, as in `[layers.2, layers.4]`; none for stages of equal cost.
    pub pipeline_parallel_first_units: Vec<String>,
    /// Ranks that share each sequence.
    #[schemars(range(min = 1))]
    pub context_parallel_degree: i64,
    /// Ranks that share the experts.
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
}

impl PipelineSchedule {
    /// The schedule.
    pub fn family(self) -> Family {
        match self {
            Self::GPipe => Family::GPipe,
            Self::OneForwardOneBackward => Family::OneForwardOneBackward,
            Self::Interleaved => Family::Interleaved,
            Self::LoopedBreadthFirst => Family::LoopedBreadthFirst,
            Self::ZeroBubble => Family::ZeroBubble,
            Self::ZeroBubbleV => Family::ZeroBubbleV,
            Self::DualPipeV => Family::DualPipeV,
        }
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
    /// Stages that each rank of the pipeline has.
    pub fn pipeline_stages_per_rank(&self) -> usize {
        let family = self.pipeline_parallel_schedule.family();
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

/// Saving and resuming.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Whether checkpoints are written.
    pub enable: bool,
    /// Steps between checkpoints; the last step is always saved.
    #[schemars(range(min = 1))]
    pub interval: usize,
    /// Folder of the checkpoints, inside the run's output folder unless absolute.
    #[schemars(length(min = 1))]
    pub folder: PathBuf,
    /// Newest checkpoints that are kept; 0 keeps all.
    pub keep_latest_k: usize,
    /// Whether training waits until a checkpoint is written.
    pub async_mode: AsyncMode,
    /// Whether the checkpoint of the last step holds only the model. It is a third of the size or less, but
    /// the run cannot be continued from it.
    pub last_save_model_only: bool,
    /// Whether the run continues from the newest checkpoint.
    pub resume: Resume,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            enable: true,
            interval: 500,
            folder: "checkpoint".into(),
            keep_latest_k: 2,
            async_mode: AsyncMode::default(),
            last_save_model_only: false,
            resume: Resume::default(),
        }
    }
}

/// Whether training waits until a checkpoint is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AsyncMode {
    /// It waits. Of the tensors, one at a time is copied to host memory.
    Disabled,
    /// It waits only while parameters and optimizer state are copied to host memory, which must have
    /// room for them; a thread writes the copy while training goes on.
    #[default]
    Async,
}

/// Whether a run continues from a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// From the newest complete checkpoint, or from the start where the folder does not exist. A
    /// folder that exists without a complete checkpoint is an error.
    #[default]
    Auto,
    /// From the newest complete checkpoint; none is an error.
    Require,
    /// Always from the start; a folder that already holds checkpoints is an error.
    Never,
}

/// The loss on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Whether the loss on `data.validation` is measured.
    pub enable: bool,
    /// Steps between validations; the last step is always validated.
    #[schemars(range(min = 1))]
    pub interval: usize,
    /// Micro-batches of one validation; 0 reads the whole split once.
    pub steps: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { enable: false, interval: 100, steps: 10 }
    }
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Steps between lines on the terminal. `metrics.jsonl` gets every step.
    #[schemars(range(min = 1))]
    pub log_interval: usize,
    /// Whether TensorBoard events are written to `tensorboard/`.
    pub tensorboard: bool,
    /// Peak rate of the device for MFU, in TFLOP/s. Default: a matrix product measured at start.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub peak_tflops: Option<f64>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { log_interval: 1, tensorboard: true, peak_tflops: None }
    }
}
