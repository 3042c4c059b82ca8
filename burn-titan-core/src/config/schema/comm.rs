//! The sections `comm` and `debug`: what connects ranks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How ranks exchange tensors. A run on one rank needs none of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CommConfig {
    /// What carries the tensors between processes. With `--simulate` they stay within one.
    pub backend: CommBackend,
    /// A rank that is lost, or does not answer for so long, ends the run, in seconds. Longer than anything
    /// that one rank does while the others wait for it; for checkpoints they wait longer.
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: u64,
    /// How long ranks wait for each other at the start, in seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub join_timeout_seconds: u64,
    /// IP address that each rank listens on for the others. Default: loopback, where they meet there, as
    /// with `--ranks`; else on rank 0 the address that the rendezvous names, and on the others the one that
    /// leads to it. `0.0.0.0` is every IPv4 interface, `::` every interface.
    pub listen_address: Option<String>,
    /// What travels as int8 blocks of 256 elements with one scale each (ZeRO++), a quarter of the bytes of
    /// `float32`; an element is off by at most 1/254 of the largest of its block.
    pub quantize: Quantize,
}

/// What of a step travels as int8.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// Nothing: ranks compute with the very parameters.
    #[default]
    None,
    /// Parameters that are gathered from the ranks that share them.
    Parameters,
    /// Gradients that are reduced to the ranks that share the parameters.
    Gradients,
    /// Both.
    All,
}

impl Quantize {
    /// Whether parameters do.
    pub fn parameters(self) -> bool {
        matches!(self, Self::Parameters | Self::All)
    }

    /// Whether gradients do.
    pub fn gradients(self) -> bool {
        matches!(self, Self::Gradients | Self::All)
    }
}

impl Default for CommConfig {
    fn default() -> Self {
        Self {
            backend: CommBackend::default(),
            timeout_seconds: 300,
            join_timeout_seconds: 300,
            listen_address: None,
            quantize: Quantize::default(),
        }
    }
}

/// What carries tensors between processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommBackend {
    /// `mpi` where mpirun has started the ranks and the build has it, else `tcp`.
    #[default]
    Auto,
    /// burn-titan's own: TCP between hosts, shared memory within one.
    Tcp,
    /// The MPI library of the cluster; needs a build with the feature `mpi`.
    Mpi,
    /// NVIDIA's NCCL; needs a build with the feature `nccl`.
    Nccl,
}

impl CommBackend {
    /// The name in the config, and of the feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcp => "tcp",
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }

    /// Whether this build has it.
    pub fn is_built(self) -> bool {
        match self {
            Self::Auto | Self::Tcp => true,
            Self::Mpi => burn_titan_parallel::mpi::BUILT,
            Self::Nccl => burn_titan_parallel::nccl::BUILT,
        }
    }
}

/// For experiments; a run for its own sake leaves all of it out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DebugConfig {
    /// An artificial link: what a rank sends to all others together in a second, in Mbit, between processes
    /// of `comm.backend=tcp`. Ranks of one host then share no memory. Default: as fast as the system can.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub link_mbit_per_second: Option<f64>,
    /// A step whose actions and exchanges every rank writes to `trace/` in the output folder, for Perfetto or
    /// Chrome's trace viewer. Default: none.
    #[schemars(range(min = 1))]
    pub trace_step: Option<usize>,
    /// Whether one rank of each host goes through the first step alone before all do. Where kernels are tuned and all
    /// ranks find what one has tuned, they do so without this.
    pub rehearse: bool,
}
