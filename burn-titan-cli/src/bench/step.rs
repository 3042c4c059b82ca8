//! `bench step`: the training step of a config, through the trainer that `train` uses.

use burn::tensor::DType;
use burn_titan_core::config::{ComputeDtype, Config, OptimizerKind};
use burn_titan_core::metrics::{StepMetrics, read_metrics};
use burn_titan_core::model::{Model, Registry};
use burn_titan_core::optim::parameter_rules;
use burn_titan_core::trainer::{Prepared, TrainError, open_device, prepare, train};
use burn_titan_parallel::World;
use serde_json::json;

use super::arguments::StepArguments;
use super::ceilings::Ceilings;
use super::measure::{Stopwatch, Timing, name_of};
use super::profile::{self, Kind};
use super::report::{ceilings_line, write_json};
use crate::output;

pub fn run(registry: &Registry, arguments: &StepArguments) -> Result<(), TrainError> {
    let words = &arguments.config;
    let Prepared { config, model } = prepare(&words.config, &words.overrides, registry, Some(1))?;
    let work = Work::of(&config, &model)?;
    let parameters = model.parameter_count();
    let stopwatch = stopwatch(&config)?;
    let steps = train_for(registry, arguments, arguments.steps)?;
    // After the run, whose peak of memory it would otherwise be a part of.
    let ceilings = Ceilings::measure(&stopwatch)?;
    let kinds = match arguments.profile {
        true => profile::of_a_step(|steps| train_for(registry, arguments, steps).map(drop))?,
        false => vec![],
    };
    let measured = Measured { parameters, work, ceilings, steps: &steps, kinds: &kinds };
    measured.print(&stopwatch, arguments)
}

/// Trains so many steps, and says what each took.
fn train_for(
    registry: &Registry,
    arguments: &StepArguments,
    steps: usize,
) -> Result<Vec<StepMetrics>, TrainError> {
    let words = &arguments.config;
    let Prepared { mut config, model } =
        prepare(&words.config, &words.overrides, registry, Some(1))?;
    let folder = tempfile::tempdir().map_err(|error| TrainError::File {
        path: std::env::temp_dir().display().to_string(),
        cause: format!("cannot make a folder for the run: {error}"),
    })?;
    config.run.output_dir = Some(folder.path().to_owned());
    config.training.steps = steps;
    config.lr_scheduler.warmup_steps = 0;
    config.checkpoint.enable = false;
    config.validation.enable = false;
    config.metrics.tensorboard = false;
    train(Prepared { config, model }, registry, World::alone())?;
    Ok(read_metrics(&folder.path().join("metrics.jsonl"))?)
}

fn stopwatch(config: &Config) -> Result<Stopwatch, TrainError> {
    let device = open_device(config.training.device, config.precision.compute)?;
    let name = serde_json::to_value(config.training.device).unwrap_or_default();
    let dtype = match config.precision.compute {
        ComputeDtype::Float32 => DType::F32,
        ComputeDtype::Bfloat16 => DType::BF16,
    };
    Ok(Stopwatch::on(device, name.as_str().unwrap_or_default().to_owned(), dtype))
}

/// What a step has to do at least.
struct Work {
    tokens: usize,
    /// As for `tflops` and `mfu` in `metrics.jsonl`.
    flops: f64,
    /// Of the optimizer: the gradient is read; the parameter and its moments are read and written.
    bytes: f64,
}

impl Work {
    fn of(config: &Config, model: &Model) -> Result<Self, TrainError> {
        let training = &config.training;
        let sequences = training.global_batch_size.unwrap_or(training.local_batch_size);
        let tokens = sequences * training.seq_len;
        let specs = model.parameters();
        let rules = parameter_rules(&config.optimizer, &specs)?;
        let bytes = specs.iter().map(|spec| {
            let moments = match rules.get(&spec.name).map(|rule| rule.kind) {
                Some(OptimizerKind::Muon) => 1,
                Some(OptimizerKind::Adamw) | None => 2,
            };
            (1 + 2 * (1 + moments)) as f64 * 4.0 * spec.elements() as f64
        });
        let flops = model.flops_per_token(training.seq_len) * tokens as f64;
        Ok(Self { tokens, flops, bytes: bytes.sum() })
    }
}

struct Measured<'a> {
    parameters: u64,
    work: Work,
    ceilings: Ceilings,
    steps: &'a [StepMetrics],
    /// What a step's time is made of; nothing where that was not asked for.
    kinds: &'a [Kind],
}

impl Measured<'_> {
    fn print(&self, stopwatch: &Stopwatch, arguments: &StepArguments) -> Result<(), TrainError> {
        // The first step also compiles kernels and fills memory pools.
        let counted = self.steps.get(1..).unwrap_or_default();
        let times = counted.iter().map(|step| step.step_seconds).collect();
        let Some(Timing { median, best, runs }) = Timing::of(times) else {
            return Err(TrainError::File {
                path: arguments.config.config.display().to_string(),
                cause: "the run left no step to measure: give --steps 2 or more".into(),
            });
        };
        let Work { tokens, flops, bytes } = self.work;
        let tokens_per_second = tokens as f64 / median;
        let gflops = flops / median / 1e9;
        let first = self.steps.first().map_or(0.0, |step| step.step_seconds);
        let memory_gib = counted.last().map_or(0.0, |step| step.memory_gib);
        let matmul_seconds = self.ceilings.matmul_seconds(flops);
        let optimizer_seconds = self.ceilings.memory_seconds(bytes);
        let floor = matmul_seconds + optimizer_seconds;
        let percent = 100.0 * floor / median;
        let (device, dtype) = (&stopwatch.device_name, name_of(stopwatch.dtype));
        output::line(&ceilings_line(device, dtype, &self.ceilings))?;
        output::write(&format!(
            "parameters         {}\n\
             tokens a step      {tokens}\n\
             step, median       {:.1} ms of {runs} steps (best {:.1} ms)\n\
             first step         {first:.2} s\n\
             tokens a second    {tokens_per_second:.0}\n\
             GFLOP/s            {gflops:.1}\n\
             peak memory        {memory_gib:.2} GiB\n\
             floor              {:.1} ms: {:.1} ms of matrix products at their ceiling, {:.1} ms of the \
             optimizer at that of memory\n\
             % of ceiling       {percent:.0}\n",
            self.parameters,
            median * 1e3,
            best * 1e3,
            floor * 1e3,
            matmul_seconds * 1e3,
            optimizer_seconds * 1e3,
        ))?;
        let parts = profile::parts(self.kinds, median);
        output::write(&profile::table(&parts))?;
        write_json(
            arguments.json.as_deref(),
            &json!({
                "subject": "step",
                "device": device,
                "dtype": dtype,
                "ceilings": self.ceilings,
                "parameters": self.parameters,
                "tokens": tokens,
                "seconds_median": median,
                "seconds_best": best,
                "runs": runs,
                "first_step_seconds": first,
                "tokens_per_second": tokens_per_second,
                "flops": flops,
                "gflops": gflops,
                "optimizer_bytes": bytes,
                "memory_gib": memory_gib,
                "floor": {
                    "matmul_seconds": matmul_seconds,
                    "optimizer_seconds": optimizer_seconds,
                    "seconds": floor,
                },
                "percent_of_ceiling": percent,
                "profile": parts,
            }),
        )
    }
}
