//! Why MPI cannot carry a run.

use std::time::Duration;

use thiserror::Error;

use crate::host::CommError;
use crate::host::tcp::JoinError;
use crate::launch::Source;

/// Why MPI cannot carry a run. All of these but [`MpiError::Exchange`] and [`MpiError::NotStarted`] are faults of
/// the configuration or of how the run was started: exit code 2.
#[derive(Debug, Error)]
pub enum MpiError {
    /// The program was built without MPI.
    #[error(
        "this program was built without MPI: build it with `--features mpi` (needs mpicc and libclang), or choose comm.backend=tcp"
    )]
    NotBuilt,
    /// MPI can be started once in a process, and not again.
    #[error("MPI was already started in this process: it can be started only once")]
    StartedBefore,
    /// `MPI_Init` has not come back.
    #[error(
        "MPI did not start within {} s: another rank of the job did not call MPI_Init, or has ended", .after.as_secs_f64()
    )]
    NotStarted {
        /// How long this process waited.
        after: Duration,
    },
    /// MPI and the environment say different things about this process.
    #[error(
        "{source_name} says rank {launch_rank} of {launch_size}, but MPI says rank {rank} of {size}: start the \
         ranks by the mpirun (or srun --mpi) of the MPI library that this program was built with, and leave \
         --ranks and --rank out"
    )]
    Disagree {
        /// This rank to MPI.
        rank: usize,
        /// Ranks to MPI.
        size: usize,
        /// This rank to the launcher.
        launch_rank: usize,
        /// Ranks to the launcher.
        launch_size: usize,
        /// Where the launcher's numbers come from.
        source_name: Source,
    },
    /// The system has no thread left.
    #[error("no thread for MPI: {0}")]
    Thread(#[from] std::io::Error),
    /// MPI reports an error while it starts.
    #[error(transparent)]
    Exchange(#[from] CommError),
}

impl MpiError {
    /// As an error of ranks that come together, whatever connects them.
    pub fn into_join_error(self) -> JoinError {
        match self {
            Self::Exchange(error) => JoinError::Lost(error),
            Self::NotStarted { .. } => {
                JoinError::Lost(CommError::Mpi { cause: self.to_string(), call: None })
            }
            refused => JoinError::Config(refused.to_string()),
        }
    }
}
