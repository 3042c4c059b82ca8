//! What a run leaves to be read: terminal, `metrics.jsonl`, TensorBoard, `loss.svg`, `config.yaml`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_titan_kernels::device::matmul_tflops;

use super::{TrainError, folder, output_dir};
use crate::config::{Config, to_yaml};
use crate::metrics::{
    EventWriter, MetricsLog, Progress, StepMetrics, memory_use, read_metrics, write_loss_svg,
};
use crate::model::Model;

pub(super) struct Report {
    title: String,
    folder: PathBuf,
    flops_per_token: f64,
    peak_tflops: Option<f64>,
    progress: Progress,
    log: MetricsLog,
    events: Option<EventWriter>,
}

impl Report {
    pub(super) fn open(
        config: &Config,
        model: &Model,
        step: u64,
        resumed: Option<&Path>,
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
            "{} {} ({} parameters) on {}: {}",
            config.model.name,
            config.model.flavor,
            grouped(model.parameter_count()),
            device_name(config),
            match resumed {
                Some(path) => format!("continues from {}", path.display()),
                None => format!("starts, writing to {}", folder.display()),
            }
        ));
        if let Some(aside) = aside {
            let aside = aside.display();
            progress.message(&format!("the metrics of an earlier run are now in {aside}"));
        }
        Ok(Self {
            title: config.run.name.clone(),
            flops_per_token: model.flops_per_token(config.training.seq_len),
            peak_tflops: config.metrics.peak_tflops,
            folder,
            progress,
            log,
            events,
        })
    }

    /// Fills in rates and memory of a step of so many tokens.
    pub(super) fn rates(&mut self, metrics: &mut StepMetrics, tokens: usize, device: &Device) {
        let peak = *self.peak_tflops.get_or_insert_with(|| matmul_tflops(device));
        metrics.tokens_per_second = tokens as f64 / metrics.step_seconds;
        metrics.tflops = metrics.tokens_per_second * self.flops_per_token / 1e12;
        metrics.mfu = metrics.tflops / peak;
        metrics.memory_gib = memory_use().map_or(0.0, |memory| memory.peak_gib());
    }

    pub(super) fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
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

    /// Returns when the rows of all steps are on the disk.
    pub(super) fn sync(&self) -> Result<(), TrainError> {
        self.log.sync().map_err(TrainError::Record)
    }

    pub(super) fn message(&self, text: &str) {
        self.progress.message(text);
    }

    pub(super) fn finish(&self) -> Result<(), TrainError> {
        self.progress.finish();
        self.draw()
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
