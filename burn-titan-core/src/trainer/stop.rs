//! Stopping from outside: a run that is asked to stop saves after its step and ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// A process is asked as a whole, by a signal; all ranks in it stop.
static FLAG: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// What asks the runs of this process to stop, once it is true: they save after their step and end with
/// [`TrainError::Stopped`]. The other ranks of their worlds stop after the same step.
///
/// [`TrainError::Stopped`]: super::TrainError::Stopped
pub fn stop_flag() -> Arc<AtomicBool> {
    FLAG.clone()
}

pub(super) fn is_requested() -> bool {
    FLAG.load(Ordering::Relaxed)
}
