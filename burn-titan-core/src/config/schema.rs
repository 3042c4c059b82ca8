//! The one typed schema of a run's YAML.
//!
//! A field's docstring is its help: `burn-titan schema`, `docs/configuration.md` and the messages of
//! `validate` are all derived from this file. Sizes say their unit.

mod comm;
mod data;
mod optimizer;
mod parallelism;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use comm::*;
pub use data::*;
pub use optimizer::*;
pub use parallelism::*;

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
