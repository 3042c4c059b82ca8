//! Starting the ranks of this host: the same command again, once for each.

#[cfg(unix)]
use std::ffi::OsString;

use burn_titan_core::trainer::TrainError;
use burn_titan_parallel::launch::HostLaunch;

/// Runs this process's command as ranks and stays until all have ended.
///
/// # Errors
/// If they cannot be started, or one fails: then with its exit code.
#[cfg(unix)]
pub fn run(host: &HostLaunch) -> Result<(), TrainError> {
    use burn_titan_parallel::launch::{LocalRun, Outcome, run_local};
    let program = std::env::current_exe().map_err(|error| TrainError::File {
        path: "this program".into(),
        cause: format!("cannot be found to be started again: {error}"),
    })?;
    let arguments = std::env::args_os().skip(1).collect();
    let mut local = LocalRun::new(host, program, arguments);
    local.environment.extend(threads(host.ranks));
    match run_local(&local)? {
        Outcome { code: 0, .. } => Ok(()),
        Outcome { code, rank } => Err(TrainError::Ranks { rank, code }),
    }
}

/// Each rank computes on its share of the cores, unless the user says on how many.
#[cfg(unix)]
fn threads(ranks: usize) -> Option<(OsString, OsString)> {
    const THREADS: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(THREADS).is_some() {
        return None;
    }
    let cores = std::thread::available_parallelism().ok()?.get();
    Some((THREADS.into(), (cores / ranks).max(1).to_string().into()))
}

/// Ranks are started by signals and process groups of Unix.
#[cfg(not(unix))]
pub fn run(_: &HostLaunch) -> Result<(), TrainError> {
    Err(TrainError::File {
        path: "--ranks".into(),
        cause: "local ranks need a Unix system: start one process a rank yourself".into(),
    })
}
