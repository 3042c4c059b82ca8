//! Timing operations on a device.

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_titan_core::metrics::physical_memory;
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::device::is_flex;

use super::arguments::MeasureArguments;
use crate::generate::open_named_device;

/// Runs that are not counted: they compile kernels, fill memory pools and wake up threads.
const WARM_UP: usize = 2;
/// Runs that are made whatever time they take, so that there is a median.
const LEAST: usize = 3;

/// How long the runs of an operation took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Of all runs.
    pub median: f64,
    /// Of the fastest run.
    pub best: f64,
    /// Number of runs.
    pub runs: usize,
}

impl Timing {
    /// Of these times; `None` where there is none.
    pub fn of(mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let runs = seconds.len();
        let best = *seconds.first()?;
        let median = (seconds[(runs - 1) / 2] + seconds[runs / 2]) / 2.0;
        Some(Self { median, best, runs })
    }
}

/// Measures operations on a device.
pub struct Stopwatch {
    /// The device.
    pub device: Device,
    /// The name of the device in the command.
    pub device_name: String,
    /// Format of the tensors.
    pub dtype: DType,
    repeat: usize,
    seconds: f64,
}

impl Stopwatch {
    /// On the device that the options name.
    ///
    /// # Errors
    /// If the device is not there, or cannot compute in `dtype`.
    pub fn new(options: &MeasureArguments, dtype: DType) -> Result<Self, TrainError> {
        let device = open_named_device(&options.device)?;
        if !device.supports_dtype(dtype) {
            return Err(TrainError::File {
                path: format!("--dtype {}", name_of(dtype)),
                cause: format!("the device {} cannot compute in it: use f32", options.device),
            });
        }
        let (repeat, seconds) = (options.repeat, options.seconds);
        Ok(Self { device, device_name: options.device.clone(), dtype, repeat, seconds })
    }

    /// On an open device, for measurements of a second.
    pub fn on(device: Device, device_name: String, dtype: DType) -> Self {
        Self { device, device_name, dtype, repeat: 10, seconds: 1.0 }
    }

    /// Refuses what cannot fit into the memory of the machine, where that is the device's.
    ///
    /// # Errors
    /// If `bytes` are more than there are; `option` is the option that asks for them.
    pub fn fits(&self, bytes: f64, option: &str) -> Result<(), TrainError> {
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        match physical_memory() {
            Some(memory) if is_flex(&self.device) && bytes > memory as f64 => {
                let (needed, there) = (gib(bytes), gib(memory as f64));
                Err(TrainError::File {
                    path: option.into(),
                    cause: format!(
                        "the tensors take {needed:.1} GiB, but this machine has {there:.1} GiB of \
                         memory: choose smaller sizes"
                    ),
                })
            }
            _ => Ok(()),
        }
    }

    /// Uniform numbers from -1 to 1 in the format of the measurement.
    pub fn noise<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let range = Distribution::Uniform(-1.0, 1.0);
        Tensor::random(shape, range, (&self.device, self.dtype))
    }

    /// Reads an element of a result: a device tells only then of a kernel that it could not run, for
    /// want of memory for example.
    ///
    /// # Errors
    /// If the device failed.
    pub fn check<const D: usize>(&self, result: Tensor<D>) -> Result<(), TrainError> {
        let elements = result.shape().num_elements();
        let element = result.reshape([elements]).slice(0..1);
        element.try_into_data().map(drop).map_err(|error| self.failed(&error))
    }

    /// Times an operation, whose result was checked: from before it is asked for until the device has
    /// done it. What it returns is kept until the clock has stopped.
    ///
    /// # Errors
    /// If the device fails.
    pub fn time<T>(&self, mut operation: impl FnMut() -> T) -> Result<Timing, TrainError> {
        for _ in 0..WARM_UP {
            self.time_once(&mut operation)?;
        }
        let start = Instant::now();
        let mut seconds = vec![self.time_once(&mut operation)?];
        while seconds.len() < LEAST
            || (seconds.len() < self.repeat && start.elapsed().as_secs_f64() < self.seconds)
        {
            seconds.push(self.time_once(&mut operation)?);
        }
        Ok(Timing::of(seconds).expect("there was a run"))
    }

    /// As [`Self::time`], for two operations in turns: what else the machine does falls on both alike. Each has as long
    /// as an operation on its own.
    ///
    /// # Errors
    /// If the device fails.
    pub fn time_in_turns<A, B>(
        &self,
        mut first: impl FnMut() -> A,
        mut second: impl FnMut() -> B,
    ) -> Result<[Timing; 2], TrainError> {
        let mut seconds = [vec![], vec![]];
        let mut start = Instant::now();
        for run in 0.. {
            let both = [self.time_once(&mut first)?, self.time_once(&mut second)?];
            if run < WARM_UP {
                start = Instant::now();
                continue;
            }
            for (seconds, one) in seconds.iter_mut().zip(both) {
                seconds.push(one);
            }
            let runs = run + 1 - WARM_UP;
            let over = start.elapsed().as_secs_f64() >= 2.0 * self.seconds;
            if runs >= LEAST && (runs >= self.repeat || over) {
                break;
            }
        }
        Ok(seconds.map(|seconds| Timing::of(seconds).expect("there was a run")))
    }

    fn time_once<T>(&self, operation: &mut impl FnMut() -> T) -> Result<f64, TrainError> {
        let start = Instant::now();
        let result = operation();
        let done = self.device.sync();
        let seconds = start.elapsed().as_secs_f64();
        drop(result);
        done.map(|()| seconds).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &impl std::fmt::Display) -> TrainError {
        TrainError::File {
            path: format!("--device {}", self.device_name),
            cause: format!(
                "the device failed ({}): choose smaller sizes",
                causes(&error.to_string())
            ),
        }
    }
}

/// The causes that an error of a device lists, in one line and without backtraces.
fn causes(error: &str) -> String {
    let lines = error.lines().map(str::trim);
    let causes = lines.take_while(|line| !line.contains("backtrace"));
    causes.filter(|line| *line != "Caused by:").collect::<Vec<_>>().join("; ")
}

/// A format as the options name it.
pub fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_best() {
        assert_eq!(Timing::of(vec![]), None);
        let of = |seconds: &[f64]| Timing::of(seconds.to_vec());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Timing { median: 2.0, best: 1.0, runs: 3 }));
        assert_eq!(of(&[4.0, 1.0, 2.0, 8.0]), Some(Timing { median: 3.0, best: 1.0, runs: 4 }));
    }

    #[test]
    fn a_device_error_is_one_line() {
        let error = "a launch failed\nCaused by:\n  no memory\nNo backtrace available\nAsked at:\n";
        assert_eq!(causes(error), "a launch failed; no memory");
    }
}
