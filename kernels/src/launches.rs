//! Which kernels a program launches, and how long a device is busy with each.

#[cfg(feature = "cube")]
mod watch;

/// The launches of one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Launches {
    /// The path of its type, without what it is generic over.
    pub kernel: String,
    /// How many.
    pub count: usize,
    /// Seconds that the device was busy with them.
    pub seconds: f64,
}

/// Does some work, and says which kernels all threads of this program have launched meanwhile: none on flex. Each launch
/// costs a round trip to the device's queue, so the work takes longer than it would.
pub fn observe<T>(work: impl FnOnce() -> T) -> (T, Vec<Launches>) {
    #[cfg(feature = "cube")]
    return watch::observe(work);
    #[cfg(not(feature = "cube"))]
    (work(), vec![])
}
