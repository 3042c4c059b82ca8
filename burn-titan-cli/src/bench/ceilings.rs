//! What the device can do at most, as far as this process can see.

use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::device::{memory, memory_bandwidth};
use serde::Serialize;

use super::measure::Stopwatch;

/// Rates that operations are held against.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ceilings {
    /// Of the best square matrix product, in GFLOP/s; `None` where it was not asked for.
    pub gflops: Option<f64>,
    /// Of memory, in GB/s (1e9 bytes): see [`memory_bandwidth`].
    pub gb_per_second: f64,
}

impl Ceilings {
    /// Measured now, with the stopwatch's device and format.
    ///
    /// # Errors
    /// If the device fails.
    pub fn measure(stopwatch: &Stopwatch) -> Result<Self, TrainError> {
        let gflops = Some(best_matmul(stopwatch)? / 1e9);
        Ok(Self { gflops, ..Self::of_memory(stopwatch) })
    }

    /// Of memory alone, for operations that do little else.
    pub fn of_memory(stopwatch: &Stopwatch) -> Self {
        Self { gflops: None, gb_per_second: memory_bandwidth(&stopwatch.device) / 1e9 }
    }

    /// The least time that work of so many operations and bytes can take, in seconds, if both go on at once.
    pub fn floor(&self, flops: f64, bytes: f64) -> f64 {
        self.matmul_seconds(flops).max(self.memory_seconds(bytes))
    }

    /// The time of so many operations; none where their rate is not known.
    pub fn matmul_seconds(&self, flops: f64) -> f64 {
        self.gflops.map_or(0.0, |gflops| flops / (gflops * 1e9))
    }

    /// The time of so many bytes.
    pub fn memory_seconds(&self, bytes: f64) -> f64 {
        bytes / (self.gb_per_second * 1e9)
    }
}

/// The best rate of square products of growing size, in FLOP/s.
fn best_matmul(stopwatch: &Stopwatch) -> Result<f64, TrainError> {
    /// Larger products, which take longer than this, are not faster either.
    const LONG_ENOUGH: f64 = 0.05;
    let device = &stopwatch.device;
    let stopwatch = Stopwatch::on(device.clone(), stopwatch.device_name.clone(), stopwatch.dtype);
    let mut rate = 0.0_f64;
    // On a GPU whose memory is known small ones are not worth being tuned.
    let sizes: &[usize] = match memory(device) {
        Some(_) => &[4096, 8192],
        None => &[512, 1024, 2048, 4096, 8192],
    };
    for &size in sizes {
        let [a, b] = [(); 2].map(|()| stopwatch.noise([size, size]));
        let product = || a.clone().matmul(b.clone());
        stopwatch.check(product())?;
        let timing = stopwatch.time(product)?;
        rate = rate.max(2.0 * (size as f64).powi(3) / timing.best);
        if timing.best > LONG_ENOUGH {
            break;
        }
    }
    Ok(rate)
}
