//! Ranks on NVIDIA GPUs that exchange device memory by NCCL.
//!
//! Needs the features `cuda` and `nccl`; without them the only thing here is [`NcclError`]. The ranks come
//! together over another communicator, by which each group's number goes from its first rank to the others
//! (`communicator`), and which carries messages between two ranks, and
//! whatever is not in a GPU's memory. Operations become calls of NCCL
//! (`plan`) between the addresses of tensors (`burn_titan_kernels::device_memory`), which one thread makes
//! (`engine`). An operation that is not done in time fails; which rank is to blame, NCCL does not say.

#[cfg(feature = "nccl")]
mod communicator;
#[cfg(feature = "nccl")]
mod engine;
mod error;
#[cfg(feature = "nccl")]
mod library;
#[cfg(any(feature = "nccl", test))]
#[cfg_attr(not(feature = "nccl"), allow(dead_code))]
mod plan;

/// Whether this program was built with NCCL.
pub const BUILT: bool = cfg!(feature = "nccl");

/// The version of the library, as 2.27.3.
///
/// # Errors
/// If it was not found.
#[cfg(feature = "nccl")]
pub fn version() -> Result<String, NcclError> {
    library::version()
}

/// As with the feature `nccl`, without which it refuses.
///
/// # Errors
/// Always: the program was built without NCCL.
#[cfg(not(feature = "nccl"))]
pub fn version() -> Result<String, NcclError> {
    Err(NcclError::NotBuilt)
}

#[cfg(feature = "nccl")]
pub use communicator::{NcclCommunicator, NcclWorld};
pub use error::NcclError;
