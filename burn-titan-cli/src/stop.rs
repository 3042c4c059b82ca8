//! Signals that stop a run after a checkpoint: SIGTERM, SIGUSR1 (Slurm's warning before the end of a job's time)
//! and SIGINT (Ctrl-C), whose second one ends the process at once.

use burn_titan_core::trainer::TrainError;

/// The exit code of a run that was stopped.
#[cfg(unix)]
const STOPPED: i32 = 143;

/// Has the runs of this process stop on these signals.
#[cfg(unix)]
pub fn on_signals() -> Result<(), TrainError> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::flag;
    let stop = burn_titan_core::trainer::stop_flag();
    let register = || {
        // Before the flag is set: the first interrupt finds it false.
        flag::register_conditional_shutdown(SIGINT, STOPPED, stop.clone())?;
        for signal in [SIGTERM, SIGUSR1, SIGINT] {
            flag::register(signal, stop.clone())?;
        }
        Ok(())
    };
    register().map_err(|error: std::io::Error| TrainError::File {
        path: "signals".into(),
        cause: format!("they cannot be caught: {error}"),
    })
}

/// Elsewhere an interrupt ends the process at once.
#[cfg(not(unix))]
pub fn on_signals() -> Result<(), TrainError> {
    Ok(())
}
