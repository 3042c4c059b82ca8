//! What the counts of a plan come to on machines that are named.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::Plan;
use crate::config::ComputeDtype;

/// A GPU, and how a cluster joins several of them. Rates are those of data sheets, which no program reaches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hardware {
    /// Its name.
    pub name: &'static str,
    /// Bytes that a program finds.
    pub memory: u64,
    /// Products of bf16 matrices, in TFLOP/s, without sparsity.
    pub bfloat16_tflops: f64,
    /// Arithmetic in f32 outside of tensor cores, in TFLOP/s.
    pub float32_tflops: f64,
    /// GPUs of a host.
    pub host_gpus: usize,
    /// What a GPU sends to others of its host, in GB/s (NVLink).
    pub inside_gb_per_second: f64,
    /// What a GPU sends to other hosts, in GB/s (one network card for each).
    pub outside_gb_per_second: f64,
}

const MIB: u64 = 1 << 20;

impl Hardware {
    /// All that can be named: GPUs of NVIDIA with SXM sockets, in hosts of eight.
    pub const ALL: [Self; 3] = [
        Self {
            name: "a100",
            memory: 81_920 * MIB,
            bfloat16_tflops: 312.0,
            float32_tflops: 19.5,
            host_gpus: 8,
            inside_gb_per_second: 300.0,
            outside_gb_per_second: 25.0,
        },
        Self {
            name: "h100",
            memory: 81_559 * MIB,
            bfloat16_tflops: 989.4,
            float32_tflops: 66.9,
            host_gpus: 8,
            inside_gb_per_second: 450.0,
            outside_gb_per_second: 50.0,
        },
        Self {
            name: "h200",
            memory: 143_771 * MIB,
            bfloat16_tflops: 989.4,
            float32_tflops: 66.9,
            host_gpus: 8,
            inside_gb_per_second: 450.0,
            outside_gb_per_second: 50.0,
        },
    ];

    /// Its rate where a model computes in this format, in FLOP/s.
    fn rate(&self, compute: ComputeDtype) -> f64 {
        1e12 * match compute {
            ComputeDtype::Bfloat16 => self.bfloat16_tflops,
            ComputeDtype::Float32 => self.float32_tflops,
        }
    }
}

/// A name that no hardware has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownHardware(String);

impl fmt::Display for UnknownHardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Hardware::ALL.map(|hardware| hardware.name).join(", ");
        write!(f, "no hardware is named `{}`: there are {names}", self.0)
    }
}

impl std::error::Error for UnknownHardware {}

impl FromStr for Hardware {
    type Err = UnknownHardware;

    fn from_str(name: &str) -> Result<Self, UnknownHardware> {
        let found = Self::ALL.into_iter().find(|hardware| hardware.name == name);
        found.ok_or_else(|| UnknownHardware(name.to_owned()))
    }
}

/// The least time of a step on some hardware.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// The hardware.
    pub hardware: Hardware,
    /// Whether the peak fits into a GPU's memory.
    pub fits: bool,
    /// Seconds of a rank's share of the model's arithmetic at the hardware's rate. What is computed again is not
    /// among it.
    pub compute_seconds: f64,
    /// The same with the time in which a rank of a pipeline waits.
    pub bubble_seconds: f64,
    /// For each axis of [`Plan::sent`], whether its ranks are in one host, and the seconds of what a rank sends.
    pub exchanges: Vec<ExchangeEstimate>,
}

/// The least time of what a rank sends along an axis.
#[derive(Debug, Clone, Serialize)]
pub struct ExchangeEstimate {
    /// The axis.
    pub axis: String,
    /// Whether all ranks of a group are in one host.
    pub inside: bool,
    /// Seconds a step.
    pub seconds: f64,
}

impl Estimate {
    /// Of a plan whose model computes in this format.
    pub fn new(plan: &Plan, hardware: Hardware, compute: ComputeDtype) -> Self {
        let compute_seconds = plan.step.flops / plan.ranks as f64 / hardware.rate(compute);
        let bubble = plan.pipeline.as_ref().map_or(0.0, |pipeline| pipeline.bubble);
        let exchanges = plan.sent.iter().map(|sent| {
            let inside = sent.span <= hardware.host_gpus;
            let rate = match inside {
                true => hardware.inside_gb_per_second,
                false => hardware.outside_gb_per_second,
            };
            let seconds = sent.bytes as f64 / (1e9 * rate);
            ExchangeEstimate { axis: sent.axis.clone(), inside, seconds }
        });
        Self {
            hardware,
            fits: plan.memory.peak.bytes <= hardware.memory,
            compute_seconds,
            bubble_seconds: compute_seconds / (1.0 - bubble),
            exchanges: exchanges.collect(),
        }
    }

    /// Seconds of a step if computation waits for no exchange, and if it waits for all.
    pub fn seconds(&self) -> [f64; 2] {
        let times = || self.exchanges.iter().map(|exchange| exchange.seconds);
        let longest = times().fold(self.bubble_seconds, f64::max);
        [longest, self.bubble_seconds + times().sum::<f64>()]
    }
}
