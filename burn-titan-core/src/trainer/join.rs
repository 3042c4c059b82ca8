//! How a run's process becomes a rank.

use std::time::Duration;

use burn_titan_parallel::host::tcp::JoinError;
use burn_titan_parallel::launch::{Family, Launch};
use burn_titan_parallel::{World, WorldOptions};

use super::TrainError;
use crate::config::{CommBackend, Config};

/// Joins the ranks that this process was launched with, over what `comm.backend` says.
///
/// # Errors
/// If they do not come together in time, and which; or if the launcher's environment lacks something.
pub fn join(config: &Config, launch: &Launch) -> Result<World, TrainError> {
    let options = options(config)?;
    let by_mpi = launch.source.family == Family::Mpi && CommBackend::Mpi.is_built();
    let world = match config.comm.backend {
        _ if launch.world_size == 1 => World::alone(),
        CommBackend::Mpi => World::over_mpi(launch, &options)?,
        CommBackend::Auto if by_mpi => World::over_mpi(launch, &options)?,
        // NCCL's ranks find each other so too; the device comes later.
        CommBackend::Auto | CommBackend::Tcp | CommBackend::Nccl => World::join(launch, &options)?,
    };
    Ok(world)
}

fn options(config: &Config) -> Result<WorldOptions, JoinError> {
    let comm = &config.comm;
    let listen = comm.listen_address.as_ref().map(|address| {
        let wrong = |error| JoinError::Config(format!("comm.listen_address: {address}: {error}"));
        address.parse().map_err(wrong)
    });
    Ok(WorldOptions {
        timeout: Duration::from_secs(comm.timeout_seconds),
        join_timeout: Duration::from_secs(comm.join_timeout_seconds),
        listen: listen.transpose()?,
        bytes_per_second: config.debug.link_mbit_per_second.map(|mbit| mbit * 1e6 / 8.0),
        ..WorldOptions::default()
    })
}
