//! `metrics.jsonl`: one JSON object a step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::checkpoint::{FileError, write_file};

/// What is measured in one optimizer step. Numbers that are not finite are `null` in JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean training loss over the step's valid tokens, in nats a token.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Global L2 norm of the gradients before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Learning rate of the step.
    #[serde(deserialize_with = "number_or_null")]
    pub lr: f64,
    /// Trained tokens a second.
    #[serde(deserialize_with = "number_or_null")]
    pub tokens_per_second: f64,
    /// Achieved arithmetic of the model, in TFLOP/s.
    #[serde(deserialize_with = "number_or_null")]
    pub tflops: f64,
    /// Model FLOPs utilisation: `tflops` over the device's peak, from 0 to 1.
    #[serde(deserialize_with = "number_or_null")]
    pub mfu: f64,
    /// Peak memory, in GiB: of the GPU on CUDA (all that was seen in use on it after a step, by any process), else
    /// the resident memory of the process.
    #[serde(deserialize_with = "number_or_null")]
    pub memory_gib: f64,
    /// Time the step waited for data, in seconds.
    #[serde(deserialize_with = "number_or_null")]
    pub data_seconds: f64,
    /// Time of the whole step, in seconds.
    #[serde(deserialize_with = "number_or_null")]
    pub step_seconds: f64,
    /// Of each layer with experts, the tokens of the busiest one over the mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expert_load: Vec<f64>,
    /// Choices of experts, over tokens and layers, that no expert has met: 0, for every expert meets the rows that it
    /// gets, however many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    /// What the choice of experts adds to the training loss, which is without it, where the model has such losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auxiliary_loss: Option<f64>,
    /// Mean loss on the held-out data after the step, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What can be wrong with `metrics.jsonl` or the files made from it.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not a step.
    #[error(
        "{}: line {line}: not a step's metrics: {reason}: remove the line, or move the file away",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Appends to `metrics.jsonl`; every row is handed to the operating system at once.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the file of a run that continues after `resumed_step` (0: from the start). Rows of later
    /// steps are removed, as those steps will run again; so is a last line that a crash cut off.
    ///
    /// # Errors
    /// [`MetricsError`] where another line is not a step's metrics, or the disk refuses.
    pub fn open(path: &Path, resumed_step: u64) -> Result<Self, MetricsError> {
        let old = read_text(path)?;
        let rows = parse(path, &old)?;
        let kept: Vec<&str> = rows
            .iter()
            .filter(|row| row.metrics.step <= resumed_step)
            .map(|row| row.text)
            .collect();
        let mut text = kept.join("\n");
        text.push_str(if kept.is_empty() { "" } else { "\n" });
        if text != old {
            // The rows that are kept keep every digit, and a crash here loses none of them.
            let aside = path.with_extension("jsonl.partial");
            write_file(&aside, text.as_bytes())?;
            fs::rename(&aside, path).map_err(|e| FileError::new(path, "replace the file", e))?;
        }
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|error| FileError::new(path, "open the file", error))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`MetricsError::File`].
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), MetricsError> {
        let mut line = serde_json::to_vec(metrics)
            .map_err(|error| FileError::new(&self.path, "write the file", error.into()))?;
        line.push(b'\n');
        let written = self.file.write_all(&line);
        Ok(written.map_err(|error| FileError::new(&self.path, "write the file", error))?)
    }

    /// Returns when all rows are on the disk, not only with the operating system.
    ///
    /// # Errors
    /// [`MetricsError::File`].
    pub fn sync(&self) -> Result<(), MetricsError> {
        let synced = self.file.sync_data();
        Ok(synced.map_err(|error| FileError::new(&self.path, "write the file", error))?)
    }
}

/// Reads all rows of a `metrics.jsonl`; a last line that was cut off is left out, a file that does
/// not exist has none.
///
/// # Errors
/// [`MetricsError`] where another line is not a step's metrics, or the file cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>, MetricsError> {
    let text = read_text(path)?;
    Ok(parse(path, &text)?.into_iter().map(|row| row.metrics).collect())
}

struct Row<'a> {
    text: &'a str,
    metrics: StepMetrics,
}

fn read_text(path: &Path) -> Result<String, MetricsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(FileError::new(path, "read the file", error).into()),
    }
}

fn parse<'a>(path: &Path, text: &'a str) -> Result<Vec<Row<'a>>, MetricsError> {
    let mut rows = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // A row ends with a newline; what does not was cut off by a crash.
        let Some(text) = line.strip_suffix('\n') else { break };
        let metrics = serde_json::from_str(text).map_err(|error| MetricsError::Line {
            path: path.to_path_buf(),
            line: number + 1,
            reason: error.to_string(),
        })?;
        rows.push(Row { text, metrics });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    fn row(step: u64) -> StepMetrics {
        StepMetrics { step, loss: 0.1 + step as f64 / 3.0, lr: 8e-4, ..Default::default() }
    }

    fn steps(path: &Path) -> Vec<u64> {
        read_metrics(path).unwrap().iter().map(|row| row.step).collect()
    }

    #[test]
    fn rows_have_the_fixed_keys_in_order() {
        let mut json = serde_json::to_string(&StepMetrics { loss: f64::NAN, ..row(3) }).unwrap();
        assert_eq!(
            json,
            "{\"step\":3,\"loss\":null,\"grad_norm\":0.0,\"lr\":0.0008,\"tokens_per_second\":0.0,\
             \"tflops\":0.0,\"mfu\":0.0,\"memory_gib\":0.0,\"data_seconds\":0.0,\
             \"step_seconds\":0.0}"
        );
        let read: StepMetrics = serde_json::from_str(&json).unwrap();
        assert!(read.loss.is_nan());
        let metrics = StepMetrics { validation_loss: Some(4.5), ..row(3) };
        json = serde_json::to_string(&metrics).unwrap();
        assert!(json.ends_with(",\"validation_loss\":4.5}"), "{json}");
        assert_eq!(serde_json::from_str::<StepMetrics>(&json).unwrap(), metrics);
    }

    #[test]
    fn a_resumed_curve_is_continuous() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=7 {
            log.append(&row(step)).unwrap();
        }
        let before = fs::read_to_string(&path).unwrap();
        // A crash in the middle of a row.
        fs::write(&path, format!("{before}{{\"step\":8,\"lo")).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6, 7]);
        let mut log = MetricsLog::open(&path, 5).unwrap();
        log.append(&row(6)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        assert!(before.starts_with(&fs::read_to_string(&path).unwrap()));
        MetricsLog::open(&path, 6).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        MetricsLog::open(&path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn foreign_lines_are_refused() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let good = serde_json::to_string(&row(1)).unwrap();
        fs::write(&path, format!("{good}\nhello\n{good}\n")).unwrap();
        assert_eq!(
            MetricsLog::open(&path, 9).unwrap_err().to_string(),
            format!(
                "{}: line 2: not a step's metrics: expected value at line 1 column 1: remove the \
                 line, or move the file away",
                path.display()
            )
        );
        fs::write(&path, "{\"step\":1}\n").unwrap();
        let message = read_metrics(&path).unwrap_err().to_string();
        assert!(
            message.contains("line 1: not a step's metrics: missing field `loss`"),
            "{message}"
        );
        assert!(read_metrics(&folder.path().join("none")).unwrap().is_empty());
    }
}
