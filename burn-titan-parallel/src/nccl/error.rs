//! Why NCCL cannot carry a run.

use thiserror::Error;

use crate::host::CommError;
use crate::host::tcp::JoinError;

/// Why NCCL cannot carry a run. All of these but [`NcclError::Exchange`] are faults of the configuration or of
/// the machine: exit code 2.
#[derive(Debug, Error)]
pub enum NcclError {
    /// The program was built without NCCL.
    #[error(
        "this program was built without NCCL: build it with `--features cuda,nccl`, or choose comm.backend=tcp"
    )]
    NotBuilt,
    /// The library is not installed.
    #[error(
        "NCCL (libnccl.so) was not found: install it (`libnccl-dev` of NVIDIA's packages; `libnccl2` alone has no file of that name), or add its folder to LD_LIBRARY_PATH, or choose comm.backend=tcp"
    )]
    NoLibrary,
    /// The device is none of NVIDIA's.
    #[error(
        "NCCL exchanges the memory of NVIDIA's GPUs, but the device is {device}: choose training.device=cuda or comm.backend=tcp"
    )]
    NoGpu {
        /// Which it is.
        device: String,
    },
    /// The system has no thread left.
    #[error("no thread for NCCL: {0}")]
    Thread(#[from] std::io::Error),
    /// An error while the ranks come together.
    #[error(transparent)]
    Exchange(#[from] CommError),
}

impl NcclError {
    /// As an error of ranks that come together, whatever connects them.
    pub fn into_join_error(self) -> JoinError {
        match self {
            Self::Exchange(error) => JoinError::Lost(error),
            refused => JoinError::Config(refused.to_string()),
        }
    }
}
