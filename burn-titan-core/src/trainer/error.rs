//! What stops a run.

use burn_titan_kernels::device::{DeviceError, DeviceMemoryUse};
use burn_titan_parallel::check::CheckError;
use burn_titan_parallel::context_parallel::TooShort;
use burn_titan_parallel::host::tcp::JoinError;
use burn_titan_parallel::launch::LaunchError;
use burn_titan_parallel::pipeline::SimulateError;
use burn_titan_parallel::{CommError, MeshError};
use thiserror::Error;

use super::PipelineError;
use crate::checkpoint::{CheckpointError, FileError, TensorError};
use crate::config::{ComputeDtype, ConfigErrors, DeviceKind};
use crate::data::{Batch, DataError, TokenizerError};
use crate::executor::NonFinite;
use crate::hf::HfError;
use crate::metrics::MetricsError;
use crate::model::{ModelError, PlanError};
use crate::optim::OptimizerError;
use crate::sampling::SamplingError;

/// What stops a run. Every message names the place, the cause and the remedy.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer cannot be read or used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint cannot be saved.
    #[error(transparent)]
    Save(CheckpointError),
    /// A Hugging Face folder cannot be read or written.
    #[error(transparent)]
    Hf(#[from] HfError),
    /// A tensor contradicts itself.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The model refuses a config or a tensor.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model cannot be split over so many ranks.
    #[error("parallelism.tensor_parallel_degree: {0}")]
    Split(#[from] PlanError),
    /// The sequences cannot be shared by so many ranks.
    #[error("parallelism.context_parallel_degree: {0}")]
    Share(#[from] TooShort),
    /// There is no such pipeline.
    #[error("parallelism.pipeline_parallel_degree: {0}")]
    Pipeline(#[from] PipelineError),
    /// A pipeline's time line cannot be drawn.
    #[error("parallelism.pipeline_parallel_degree: {0}")]
    TimeLine(#[from] SimulateError),
    /// No optimizer can be made.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// A metrics file cannot be read or written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A step cannot be recorded.
    #[error(transparent)]
    Record(MetricsError),
    /// Another process runs in the output folder.
    #[error(
        "{folder}: another run is writing to this folder: wait for its end, or give this run another run.name or run.output_dir"
    )]
    Busy {
        /// The output folder.
        folder: String,
    },
    /// A run would start from step 0 in the folder of one that can be continued.
    #[error(
        "{folder}: the folder holds an earlier run, whose newest checkpoint is {newest}, but this run neither continues it nor may overwrite its metrics: choose another run.name or run.output_dir, or delete the folder"
    )]
    HoldsRun {
        /// The output folder.
        folder: String,
        /// Folder of the newest checkpoint in it.
        newest: String,
    },
    /// The run to continue is longer than the config asks for.
    #[error(
        "training.steps: {checkpoint} has {step} steps done, but the config says {steps}: raise training.steps to {step} or more, or start a run of another run.name"
    )]
    PastEnd {
        /// Folder of the checkpoint.
        checkpoint: String,
        /// Its steps.
        step: u64,
        /// Steps of the config.
        steps: u64,
    },
    /// The device is not there.
    #[error("training.device: {0}")]
    Device(#[from] DeviceError),
    /// The mesh does not fit.
    #[error("parallelism: {0}")]
    Mesh(#[from] MeshError),
    /// The ranks' programs are wrong: a fault of burn-titan.
    #[error("{0}; this is a fault of burn-titan, please report it")]
    Program(#[from] CheckError),
    /// Sampling a token failed.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The device cannot compute in the format.
    #[error("precision.compute: the device `{}` cannot compute in `{}`: use precision.compute=float32", name(.device), name(.compute))]
    UnsupportedDtype {
        /// The device.
        device: DeviceKind,
        /// The format.
        compute: ComputeDtype,
    },
    /// The checkpoint is of another model.
    #[error(
        "{checkpoint}: the checkpoint is of a model with {field} = {saved}, but the config says {wanted}: restore the value, or start a run of another run.name"
    )]
    OtherModel {
        /// Folder of the checkpoint.
        checkpoint: String,
        /// The first field that differs.
        field: String,
        /// Its value in the checkpoint.
        saved: String,
        /// Its value in the config.
        wanted: String,
    },
    /// The checkpoint lacks state that the optimizer of a parameter needs.
    #[error(
        "{checkpoint}: no optimizer state `{state}`: the checkpoint was made with another optimizer for this parameter: restore the section `optimizer`, or start a run of another run.name"
    )]
    OtherOptimizer {
        /// Folder of the checkpoint.
        checkpoint: String,
        /// Name of the state, `<parameter>.<state>`.
        state: String,
    },
    /// The parameters and what training keeps beside them do not fit into the machine.
    #[error(
        "model: training {parameters} parameters takes at least {:.1} GiB for weights, gradients and the optimizer's state, but this machine has {:.1} GiB of memory: choose a smaller model, or a larger machine",
        gib(*needed),
        gib(*available)
    )]
    TooLarge {
        /// Parameters of the model.
        parameters: u64,
        /// Bytes needed.
        needed: u64,
        /// Physical memory, in bytes.
        available: u64,
    },
    /// The training data ended.
    #[error(
        "step {step}: the training data ended; this is a fault of burn-titan, please report it"
    )]
    DataEnded {
        /// The step.
        step: u64,
    },
    /// The run was asked to stop.
    #[error("stopped by a signal after step {step}{}", match .checkpoint { Some(path) => format!(": the same command continues from {path}"), None => "; nothing was saved, for checkpoint.enable is false".into() })]
    Stopped {
        /// Steps done.
        step: u64,
        /// The checkpoint that was written.
        checkpoint: Option<String>,
    },
    /// A loss or a gradient is not finite.
    #[error("{0}: lower optimizer.lr, look at the documents, or set training.on_non_finite=skip")]
    NonFinite(NonFiniteStep),
    /// An exchange with other ranks failed.
    #[error("{0}")]
    Communication(#[from] CommError),
    /// A launcher's environment is not usable, or ranks cannot be started.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The ranks do not find each other.
    #[error("{0}")]
    Join(#[from] JoinError),
    /// A rank that was started here has failed.
    #[error("{} ended with exit code {code}; what it said is above", .rank.map_or("a rank".to_string(), |rank| format!("rank {rank}")))]
    Ranks {
        /// The rank that failed first.
        rank: Option<usize>,
        /// Its exit code.
        code: u8,
    },
    /// The device has no memory left.
    #[error(
        "the device `{}` is out of memory{}{}: lower training.local_batch_size or training.seq_len, set activation_checkpoint.mode=full, or share the model among more ranks (`burn-titan plan` says what a step takes)",
        name(.device),
        match .asked { 0 => String::new(), asked => format!(": {:.1} MiB were asked for", mib(*asked)) },
        .memory.map_or(String::new(), |memory| format!(
            "; of {:.1} MiB {:.1} MiB are free",
            mib(memory.total),
            mib(memory.total.saturating_sub(memory.in_use))
        ))
    )]
    OutOfMemory {
        /// The device.
        device: DeviceKind,
        /// Bytes that there were not; 0 where they are not known.
        asked: u64,
        /// What the device has, where it tells.
        memory: Option<DeviceMemoryUse>,
    },
    /// Two runs that should have the same losses have not.
    #[error(
        "step {step}: the losses of the two runs differ by {difference:.2e}, and may by {within:.2e}"
    )]
    Differ {
        /// The step whose losses differ most.
        step: u64,
        /// By how much, relative to the first run's.
        difference: f64,
        /// The most that they may.
        within: f64,
    },
    /// Kernels give wrong results.
    #[error(
        "{failed} of {checked} checks of kernels failed on the device {device}: what it computes is wrong; another driver may help, please report the lines marked FAIL"
    )]
    Kernels {
        /// The device.
        device: String,
        /// Checks that failed.
        failed: usize,
        /// Checks that were made.
        checked: usize,
    },
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(std::io::Error),
    /// A file of the user's cannot be read, or is not what it should be.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: String,
        /// What is wrong, and the remedy.
        cause: String,
    },
}

/// A step whose loss or gradient is not finite.
#[derive(Debug, Error)]
#[error("step {step}: {cause} (documents: {documents})")]
pub struct NonFiniteStep {
    /// The step, from 1.
    pub step: u64,
    /// What is not finite, and where.
    pub cause: NonFinite,
    /// The documents of the batch, shortened.
    pub documents: String,
}

impl NonFiniteStep {
    /// The documents of batches, shortened.
    pub(super) fn documents_of(batches: &[Batch]) -> String {
        const SHOWN: usize = 8;
        let mut names: Vec<String> =
            batches.iter().flat_map(|b| &b.documents).map(ToString::to_string).collect();
        names.dedup();
        let more = names.len().saturating_sub(SHOWN);
        names.truncate(SHOWN);
        let mut documents = names.join(", ");
        if more > 0 {
            documents += &format!(" and {more} more");
        }
        documents
    }
}

impl TrainError {
    /// The process's exit code: 2 for what the user gave (config, data, checkpoints, devices, what the
    /// launcher says), 138 for a rank that is lost or late, 143 for a run that was asked to stop, 1 for what
    /// went wrong in the run: a full disk, a folder in use, a fault of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Communication(_) | Self::Save(CheckpointError::Exchange(_)) => 138,
            Self::Join(error) if !error.is_refusal() => 138,
            Self::Stopped { .. } => 143,
            Self::Ranks { code, .. } => *code,
            Self::NonFinite(_) | Self::DataEnded { .. } | Self::Program(_) => 1,
            Self::Save(_) | Self::Record(_) | Self::Busy { .. } => 1,
            Self::Kernels { .. } | Self::Differ { .. } | Self::OutOfMemory { .. } => 1,
            Self::Data(DataError::Panicked { .. } | DataError::Thread(_) | DataError::Stopped) => 1,
            Self::Checkpoint(CheckpointError::Busy { .. }) => 1,
            Self::Checkpoint(CheckpointError::File(FileError::DiskFull { .. }))
            | Self::Metrics(MetricsError::File(FileError::DiskFull { .. }))
            | Self::Hf(HfError::File(FileError::DiskFull { .. })) => 1,
            _ => 2,
        }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 20) as f64
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// A choice of the config as it is written there.
fn name(choice: &impl serde::Serialize) -> String {
    serde_json::to_value(choice)
        .ok()
        .and_then(|value| value.as_str().map(String::from))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::ExchangeError;

    #[test]
    fn want_of_memory_says_what_to_lower() {
        let memory = Some(DeviceMemoryUse { in_use: 79 << 30, total: 80 << 30 });
        let error = TrainError::OutOfMemory { device: DeviceKind::Cuda, asked: 3 << 29, memory };
        let message = error.to_string();
        let begins = "the device `cuda` is out of memory: 1536.0 MiB were asked for; of 81920.0 MiB \
                      1024.0 MiB are free: lower training.local_batch_size or training.seq_len, ";
        assert!(message.starts_with(begins), "{message}");
        assert_eq!(error.exit_code(), 1);
        let error = TrainError::OutOfMemory { device: DeviceKind::Wgpu, asked: 0, memory: None };
        assert!(error.to_string().starts_with("the device `wgpu` is out of memory: lower "));
    }

    #[test]
    fn faults_of_the_run_are_told_from_those_of_the_input() {
        let path = std::path::PathBuf::from("x");
        let full = || FileError::DiskFull { path: path.clone() };
        let denied = || FileError::Permission { path: path.clone(), action: "read the file" };
        let busy = CheckpointError::Busy { folder: path.clone() };
        let ones = [
            TrainError::Save(CheckpointError::File(denied())),
            TrainError::Checkpoint(CheckpointError::File(full())),
            TrainError::Checkpoint(busy),
            TrainError::Record(MetricsError::File(denied())),
            TrainError::Metrics(MetricsError::File(full())),
            TrainError::Data(DataError::Panicked { message: String::new() }),
            TrainError::Busy { folder: String::new() },
        ];
        assert!(ones.iter().all(|error| error.exit_code() == 1));
        let twos = [
            TrainError::Checkpoint(CheckpointError::File(denied())),
            TrainError::Metrics(MetricsError::File(denied())),
            TrainError::Data(DataError::EmptyFolder { path: path.clone() }),
            TrainError::PastEnd { checkpoint: String::new(), step: 2, steps: 1 },
        ];
        assert!(twos.iter().all(|error| error.exit_code() == 2));
        let lost = CheckpointError::Exchange(ExchangeError::new("rank 1 is lost"));
        assert_eq!(TrainError::Save(lost).exit_code(), 138);
    }
}
