//! What a run leaves to be read: terminal, `metrics.jsonl`, TensorBoard, `loss.svg`, `config.yaml`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn_titan_kernels::device::matmul_tflops;

use super::{TrainError, compute_dtype, folder, output_dir};
use crate::config::{Config, to_yaml};
use crate::executor::{Executor, Groups};
use crate::metrics::{
    EventWriter, MetricsLog, Progress, StepMetrics, memory_use, read_metrics, write_loss_svg,
};
use crate::model::Model;

pub(super) struct Report {
    flops_per_token: f64,
    /// Format of the products.
    compute: DType,
    /// What one device reaches at best, if the config says it.
    device_peak_tflops: Option<f64>,
    /// What all devices of the run reach at best together.
    peak_tflops: Option<f64>,
    /// The most memory of the device that was seen in use.
    device_peak_bytes: u64,
    /// What the first rank writes, and it alone.
    records: Option<Records>,
}

/// What is shown and written.
struct Records {
    title: String,
    folder: PathBuf,
    progress: Progress,
    log: MetricsLog,
    events: Option<EventWriter>,
}

impl Report {
    /// The report of a run that is at `step`; only the first rank writes anything.
    pub(super) fn open(
        config: &Config,
        model: &Model,
        step: u64,
        resumed: Option<&Path>,
        groups: &Groups,
    ) -> Result<Self, TrainError> {
        let is_first = groups.world.rank() == 0;
        let open = || Records::open(config, model, step, resumed, groups.world.size());
        Ok(Self {
            flops_per_token: model.flops_per_token(config.training.seq_len),
            compute: compute_dtype(config.precision.compute),
            device_peak_tflops: config.metrics.peak_tflops,
            peak_tflops: None,
            device_peak_bytes: 0,
            records: is_first.then(open).transpose()?,
        })
    }

    /// Fills in rates and memory of a step of so many tokens over all ranks, each of which calls it.
    pub(super) fn rates(
        &mut self,
        metrics: &mut StepMetrics,
        tokens: usize,
        executor: &Executor,
    ) -> Result<(), TrainError> {
        let peak = match self.peak_tflops {
            Some(peak) => peak,
            None => {
                // All ranks measure at once: those that share a device, or cores, share what it reaches.
                let device = executor.device();
                let here =
                    self.device_peak_tflops.unwrap_or_else(|| matmul_tflops(device, self.compute));
                *self.peak_tflops.insert(executor.groups().sum(here, device)?)
            }
        };
        metrics.tokens_per_second = tokens as f64 / metrics.step_seconds;
        metrics.tflops = metrics.tokens_per_second * self.flops_per_token / 1e12;
        metrics.mfu = metrics.tflops / peak;
        metrics.memory_gib = self.peak_gib(executor);
        Ok(())
    }

    /// The most memory in use after any step so far: that of the device, by all that use it, where it has its own and
    /// tells; else the peak of this process.
    fn peak_gib(&mut self, executor: &Executor) -> f64 {
        let Some(memory) = burn_titan_kernels::device::memory(executor.device()) else {
            return memory_use().map_or(0.0, |memory| memory.peak_gib());
        };
        self.device_peak_bytes = self.device_peak_bytes.max(memory.in_use);
        self.device_peak_bytes as f64 / (1u64 << 30) as f64
    }

    pub(super) fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        self.records.as_mut().map_or(Ok(()), |records| records.step(metrics))
    }

    /// Returns when the rows of all steps are on the disk.
    pub(super) fn sync(&self) -> Result<(), TrainError> {
        let log = self.records.as_ref().map(|records| &records.log);
        log.map_or(Ok(()), MetricsLog::sync).map_err(TrainError::Record)
    }

    pub(super) fn message(&self, text: &str) {
        if let Some(records) = &self.records {
            records.progress.message(text);
        }
    }

    pub(super) fn finish(&self) -> Result<(), TrainError> {
        let Some(records) = &self.records else { return Ok(()) };
        records.progress.finish();
        records.draw()
    }
}

impl Records {
    fn open(
        config: &Config,
        model: &Model,
        step: u64,
        resumed: Option<&Path>,
        ranks: usize,
    ) -> Result<Self, TrainError> {
        let folder = output_dir(config);
        let aside = if resumed.is_none() { folder::set_aside(&folder)? } else { None };
        fs::write(folder.join("config.yaml"), to_yaml(config))
            .map_err(|error| folder::unwritable(&folder, &error))?;
        let log = MetricsLog::open(&folder.join("metrics.jsonl"), step)?;
        let events = config
            .metrics
            .tensorboard
            .then(|| EventWriter::create(&folder.join("tensorboard"), step))
            .transpose()?;
        let total = config.training.steps as u64;
        let progress = Progress::new(total, step, config.metrics.log_interval as u64);
        progress.message(&format!(
            "{} {} ({} parameters) on {}{}: {}",
            config.model.name,
            config.model.flavor,
            grouped(model.parameter_count()),
            device_name(config),
            if ranks > 1 { format!(", {ranks} ranks") } else { String::new() },
            match resumed {
                Some(path) => format!("continues from {}", path.display()),
                None => format!("starts, writing to {}", folder.display()),
            }
        ));
        if let Some(aside) = aside {
            let aside = aside.display();
            progress.message(&format!("the metrics of an earlier run are now in {aside}"));
        }
        Ok(Self { title: config.run.name.clone(), folder, progress, log, events })
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        self.log.append(metrics).map_err(TrainError::Record)?;
        if let Some(events) = &mut self.events {
            events.write_step(metrics).map_err(TrainError::Record)?;
        }
        self.progress.step(metrics);
        if let Some(loss) = metrics.validation_loss {
            self.progress.message(&format!("step {}: validation loss {loss:.4}", metrics.step));
            self.draw()?;
        }
        Ok(())
    }

    fn draw(&self) -> Result<(), TrainError> {
        let steps = read_metrics(&self.folder.join("metrics.jsonl"))?;
        write_loss_svg(&self.folder.join("loss.svg"), &self.title, &steps)
            .map_err(TrainError::Record)
    }
}

fn device_name(config: &Config) -> String {
    serde_json::to_value(config.training.device)
        .ok()
        .and_then(|value| value.as_str().map(String::from))
        .unwrap_or_default()
}

/// `6163712` as `6,163,712`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
