//! A training run: reads its config, resumes, steps, validates, saves.

mod error;
mod fits;
mod folder;
mod join;
mod memory;
mod pipeline;
mod prepare;
mod rehearsal;
mod report;
mod start;
mod state;
mod stop;
mod timeline;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{DType, Device};
use burn_titan_parallel::trace::chrome_trace;
use burn_titan_parallel::{Program, World};

pub use error::{NonFiniteStep, TrainError};
pub use join::join;
pub use pipeline::PipelineError;
pub(crate) use pipeline::{UnitCost, costs, pipeline};
pub use prepare::{HF_FLAVOR, Prepared, family, initial_model, prepare};
use rehearsal::Rehearsal;
use report::Report;
use start::DataRank;
pub(crate) use start::{context_method, strategy, tensor_rank};
pub(crate) use state::{TOKENIZER_FILE, TrainState};
pub use stop::stop_flag;
use timeline::Timeline;

use crate::checkpoint::{CheckpointError, Lock, Saver};
use crate::config::{ComputeDtype, Config, DeviceKind, OnNonFinite};
use crate::data::{Batch, Cursor, Loader, LoaderOptions, StreamOptions};
use crate::executor::{Executor, MicroBatch, StepError, StepOutcome, StepRule};
use crate::lr_schedule;
use crate::metrics::StepMetrics;
use crate::model::{Context, HeadOutput, Registry, Stream};
use crate::optim::Optimizer;

/// What a finished run reached.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSummary {
    /// Optimizer steps done, those before a resume included.
    pub steps: u64,
    /// Mean loss of the last step; `None` where there was no step to do.
    pub loss: Option<f64>,
    /// The last validation loss.
    pub validation_loss: Option<f64>,
    /// Folder of everything the run wrote.
    pub output_dir: PathBuf,
}

/// Folder of everything a run writes.
pub fn output_dir(config: &Config) -> PathBuf {
    config.run.output_dir.clone().unwrap_or_else(|| Path::new("outputs").join(&config.run.name))
}

/// Folder of a run's checkpoints.
pub fn checkpoint_dir(config: &Config) -> PathBuf {
    output_dir(config).join(&config.checkpoint.folder)
}

/// Opens the device that a config asks for.
///
/// # Errors
/// If it is not there, or cannot compute in the format that the config asks for.
pub fn open_device(kind: DeviceKind, compute: ComputeDtype) -> Result<Device, TrainError> {
    Ok(open_device_of_rank(kind, compute, 0)?.0)
}

/// As [`open_device`], for the rank that is the `local_rank`-th of its host: of several GPUs it takes its own. Also
/// a notice where there are fewer of them than ranks.
fn open_device_of_rank(
    kind: DeviceKind,
    compute: ComputeDtype,
    local_rank: usize,
) -> Result<(Device, Option<String>), TrainError> {
    let (device, notice) = match kind {
        DeviceKind::Flex => (burn_titan_kernels::device::flex(), None),
        DeviceKind::Wgpu => (burn_titan_kernels::device::wgpu()?, None),
        DeviceKind::Cuda => burn_titan_kernels::device::cuda_of_rank(local_rank)?,
    };
    if !device.supports_dtype(compute_dtype(compute)) {
        return Err(TrainError::UnsupportedDtype { device: kind, compute });
    }
    Ok((device, notice))
}

pub(crate) fn compute_dtype(compute: ComputeDtype) -> DType {
    match compute {
        ComputeDtype::Float32 => DType::F32,
        ComputeDtype::Bfloat16 => DType::BF16,
    }
}

/// Runs the training that a prepared config describes, from its newest checkpoint if there is one, as a rank of
/// `world`. All its ranks return the same numbers. Whoever has made the world closes it afterwards.
///
/// # Errors
/// Whatever stops a run: data, checkpoints, a device, a loss that is not finite, another rank, a signal.
pub fn train(
    prepared: Prepared,
    registry: &Registry,
    world: World,
) -> Result<TrainSummary, TrainError> {
    let output_dir = output_dir(&prepared.config);
    let steps = prepared.config.training.steps as u64;
    let config = prepared.config.clone();
    memory::explained(&config, world.local_rank(), || {
        match Trainer::new(prepared, registry, &world)? {
            Some(trainer) => trainer.run(),
            None => Ok(TrainSummary { steps, loss: None, validation_loss: None, output_dir }),
        }
    })
}

struct Trainer {
    config: Config,
    executor: Executor,
    /// What comes before the first step.
    rehearsal: Option<Rehearsal>,
    optimizer: Optimizer,
    program: Program,
    stream: StreamOptions,
    /// This rank among those that read different samples.
    data: DataRank,
    /// Contents of the tokenizer, as it was when the run began.
    tokenizer: Option<Vec<u8>>,
    loader: Loader,
    /// Where the data continues after the batches taken so far.
    cursor: Option<Cursor>,
    report: Report,
    saver: Saver,
    /// The picture of a step that is to be drawn.
    timeline: Option<Timeline>,
    /// Optimizer steps done.
    step: u64,
    /// The step whose save was begun last.
    saved_step: Option<u64>,
    /// The newest checkpoint that is complete.
    newest: Option<PathBuf>,
    /// Keeps other runs out of the output folder; the first rank's.
    _lock: Option<Lock>,
}

impl Trainer {
    fn run(mut self) -> Result<TrainSummary, TrainError> {
        let total = self.config.training.steps as u64;
        let mut last = None;
        while self.step < total {
            let Some(metrics) = self.step()? else { return Err(self.stopped()?) };
            // The row comes before the checkpoint: a crash between the two loses no step, for a resume
            // drops the rows after its checkpoint and runs those steps again.
            self.report.step(&metrics)?;
            if self.is_due(self.config.checkpoint.enable, self.config.checkpoint.interval) {
                self.save()?;
            }
            let completed = self.saver.completed();
            self.announce(completed)?;
            last = Some(metrics);
        }
        self.finish_saving()?;
        self.report.finish()?;
        let validation_loss = last.as_ref().and_then(|m: &StepMetrics| m.validation_loss);
        Ok(TrainSummary {
            steps: self.step,
            loss: last.map(|m| m.loss),
            validation_loss,
            output_dir: output_dir(&self.config),
        })
    }

    /// Saves what was not saved yet, for the run is asked to stop.
    fn stopped(&mut self) -> Result<TrainError, TrainError> {
        if self.config.checkpoint.enable && self.saved_step != Some(self.step) {
            self.save()?;
        }
        self.finish_saving()?;
        self.report.finish()?;
        let checkpoint = self.newest.take().map(|path| path.display().to_string());
        Ok(TrainError::Stopped { step: self.step, checkpoint })
    }

    /// One optimizer step, with the validation that is due after it; `None` where a rank was asked to stop.
    fn step(&mut self) -> Result<Option<StepMetrics>, TrainError> {
        let start = Instant::now();
        let batches = self.next_batches()?;
        let data_seconds = start.elapsed().as_secs_f64();
        if let Some(rehearsal) = self.rehearsal.take() {
            rehearsal.run(&self.executor, &self.program, &batches)?;
        }
        let training = &self.config.training;
        let schedule = &self.config.lr_scheduler;
        let lr_factor = lr_schedule::factor(
            self.step as usize,
            training.steps,
            schedule.warmup_steps,
            schedule.decay_ratio,
            schedule.decay_type,
            schedule.min_lr_factor,
        );
        let rule = StepRule { lr_factor, max_grad_norm: training.max_grad_norm };
        let contexts: Vec<Context> =
            batches.iter().map(|batch| self.executor.context(batch, HeadOutput::Loss)).collect();
        let groups = self.executor.groups();
        let valid_tokens = batches.iter().map(|batch| batch.valid_tokens).sum();
        let counts = [groups.roles.samples(valid_tokens), usize::from(stop::is_requested())];
        let [valid_tokens, stops] = groups.totals(counts, self.executor.device())?;
        if stops > 0 {
            return Ok(None);
        }
        self.cursor = batches.last().map(|batch| batch.cursor_after.clone());
        let (traced, drawn) = (self.is_traced(), self.is_drawn());
        if traced || drawn {
            self.executor.groups().trace.start();
        }
        let result = self.executor.train_step(
            &self.program,
            &contexts,
            valid_tokens,
            &mut self.optimizer,
            rule,
        );
        self.step += 1;
        if traced || drawn {
            self.write_trace(traced, result.is_ok())?;
        }
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(StepError::Communication(error)) => return Err(error.into()),
            Err(StepError::NonFinite(cause)) => {
                let documents = match cause.micro_batch() {
                    None => NonFiniteStep::documents_of(&batches),
                    Some(MicroBatch { rank, micro }) => {
                        let own = NonFiniteStep::documents_of(&batches[micro..=micro]);
                        let groups = self.executor.groups();
                        groups.told_by(groups.roles.reader(rank), &own, self.executor.device())?
                    }
                };
                let broken = NonFiniteStep { step: self.step, cause, documents };
                if self.config.training.on_non_finite == OnNonFinite::Stop {
                    return Err(TrainError::NonFinite(broken));
                }
                self.report.message(&format!("{broken}: the step is skipped"));
                StepOutcome { loss: f64::NAN, grad_norm: f64::NAN, ..StepOutcome::default() }
            }
        };
        let step_seconds = start.elapsed().as_secs_f64();
        let tokens: usize = batches.iter().map(|batch| batch.batch * batch.seq).sum();
        let tokens = tokens * self.data.ranks;
        let experts = self.executor.model().experts.as_ref();
        let chosen = (tokens * experts.map_or(0, |experts| experts.met)) as u64;
        let mut metrics = StepMetrics {
            step: self.step,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            expert_load: outcome.expert_loads.imbalance(),
            dropped: outcome.expert_loads.dropped(chosen),
            auxiliary_loss: outcome.auxiliary_loss,
            lr: self.config.optimizer.lr * lr_factor,
            data_seconds,
            step_seconds,
            ..StepMetrics::default()
        };
        self.report.rates(&mut metrics, tokens, &self.executor)?;
        if self.is_due(self.config.validation.enable, self.config.validation.interval) {
            metrics.validation_loss = Some(self.validate()?);
        }
        Ok(Some(metrics))
    }

    /// Whether the next step is the one whose trace is asked for.
    fn is_traced(&self) -> bool {
        self.config.debug.trace_step == Some(self.step as usize + 1)
    }

    /// Whether the next step is the one of `timeline.svg`.
    fn is_drawn(&self) -> bool {
        self.timeline.as_ref().is_some_and(|timeline| timeline.draws(self.step + 1))
    }

    /// Writes what this rank did since the trace was started: as a trace, if that is asked for, and as a picture, if this
    /// is the step of it and it was `done`.
    fn write_trace(&mut self, traced: bool, done: bool) -> Result<(), TrainError> {
        let groups = self.executor.groups();
        let rank = groups.world.rank();
        let spans = groups.trace.stop();
        let drawn = |timeline: &mut Timeline| done && timeline.draws(self.step);
        if let Some(timeline) = self.timeline.take_if(drawn) {
            timeline.write(&self.config, &self.executor, &spans)?;
        }
        if !traced {
            return Ok(());
        }
        let trace = chrome_trace(rank, &spans);
        let folder = output_dir(&self.config).join("trace");
        let path = folder.join(format!("step-{:08}-rank-{rank:05}.json", self.step));
        let written =
            fs::create_dir_all(&folder).and_then(|()| fs::write(&path, trace.to_string()));
        written.map_err(|error| folder::unwritable(&path, &error))
    }

    /// Whether something is due every `interval` steps and after the last one.
    fn is_due(&self, enabled: bool, interval: usize) -> bool {
        enabled
            && (self.step.is_multiple_of(interval.max(1) as u64)
                || self.step == self.config.training.steps as u64)
    }

    fn next_batches(&mut self) -> Result<Vec<Batch>, TrainError> {
        let step = self.step + 1;
        (0..self.program.micro_batches)
            .map(|_| self.loader.next()?.ok_or(TrainError::DataEnded { step }))
            .collect()
    }

    /// The mean loss over the validation split, or over the batches that the config asks for.
    fn validate(&self) -> Result<f64, TrainError> {
        let mut loader = Loader::spawn(LoaderOptions {
            stream: self.stream.validation(&self.config.data),
            local_batch_size: self.config.training.local_batch_size,
            rank: self.data.rank,
            world: self.data.ranks,
            prefetch_batches: self.config.data.prefetch_batches,
            cursor: None,
        })?;
        let limit = match self.config.validation.steps {
            0 => usize::MAX,
            steps => steps,
        };
        let (mut loss, mut tokens) = (0.0, 0_usize);
        for _ in 0..limit {
            let Some(batch) = loader.next()? else { break };
            let context = self.executor.context(&batch, HeadOutput::Loss);
            loss += loss_of(self.executor.forward(&context)?);
            tokens += batch.valid_tokens;
        }
        let (groups, device) = (self.executor.groups(), self.executor.device());
        let loss = groups.sum(groups.roles.loss(loss), device)?;
        let [tokens] = groups.totals([groups.roles.samples(tokens)], device)?;
        if tokens == 0 {
            return Err(TrainError::File {
                path: "data.validation".into(),
                cause: "there is no token to predict: give documents of at least 2 tokens".into(),
            });
        }
        Ok(loss / tokens as f64)
    }

    fn save(&mut self) -> Result<(), TrainError> {
        // A resume needs the rows of all steps before its checkpoint.
        self.report.sync()?;
        let state = TrainState {
            step: self.step,
            updates: self.optimizer.updates(),
            cursor: self.cursor.clone(),
            model: self.executor.model().config.clone(),
        };
        state::save(
            &mut self.saver,
            &self.config,
            &self.executor,
            &self.optimizer,
            &state,
            self.tokenizer.as_deref(),
        )?;
        self.saved_step = Some(self.step);
        Ok(())
    }

    /// Waits for the save under way.
    fn finish_saving(&mut self) -> Result<(), TrainError> {
        let completed = self.saver.finish();
        self.announce(completed)
    }

    /// Says what was saved.
    fn announce(
        &mut self,
        saved: Result<Option<PathBuf>, CheckpointError>,
    ) -> Result<(), TrainError> {
        if let Some(path) = saved.map_err(TrainError::Save)? {
            self.report.message(&format!("saved {}", path.display()));
            self.newest = Some(path);
        }
        Ok(())
    }
}

/// The summed loss that the last unit gave; 0 on a rank that has it not.
pub(crate) fn loss_of(stream: Option<Stream>) -> f64 {
    match stream {
        None => 0.0,
        Some(Stream::Loss(loss)) => crate::executor::scalar(loss),
        Some(other) => unreachable!("the head was asked for a loss, but gave {other:?}"),
    }
}
