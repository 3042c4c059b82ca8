//! How a process learns which rank it is, and how ranks are started on one host.
//!
//! Placement, queueing and restart belong to the cluster: [`read`] takes what the cluster's launcher
//! left in the environment, says what it took ([`Source`]), and refuses what contradicts itself.
//! [`run_local`] is the launcher for one host (`--ranks N`).

mod agree;
pub mod environment;
pub mod error;
pub mod hostlist;
mod kubeflow;
mod kubernetes;
mod mpi;
mod own;
pub mod place;
mod slurm;
mod torchrun;
mod variables;

#[cfg(unix)]
mod child;
#[cfg(unix)]
pub mod local;
#[cfg(unix)]
mod output;

pub use environment::{Flags, read};
pub use error::LaunchError;
#[cfg(unix)]
pub use local::{LocalRun, Outcome, run_local};
pub use own::TOKEN;
pub use place::{Family, HostLaunch, Launch, Place, Rendezvous, Source};
pub use variables::{MOST_RANKS, Setting, Variables};

#[cfg(test)]
mod tests;
