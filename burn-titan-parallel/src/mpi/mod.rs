//! Ranks that reach each other by MPI: `mpirun -n 4 burn-titan train ... comm.backend=mpi`.
//!
//! Needs the feature `mpi`; without it the only thing here is [`MpiError`]. MPI's own collectives do the work,
//! over whatever network the library is built for. One thread makes all calls of it (`engine`). Before an
//! operation the ranks tell each other what they are about to do (`notice`), so that ranks that disagree are told
//! so, as with the other communicators; then MPI does it (`transfer`), on numbers that it adds as we want them
//! added (`wire`). `notice` and `wire` need no MPI, and are tested in every build. An operation that is not done in time fails; which rank is to blame, MPI does not say.

#[cfg(feature = "mpi")]
mod engine;
mod error;
#[cfg(feature = "mpi")]
mod group;
#[cfg(feature = "mpi")]
mod library;
#[cfg(any(feature = "mpi", test))]
#[cfg_attr(not(feature = "mpi"), allow(dead_code))]
mod notice;
#[cfg(feature = "mpi")]
mod transfer;
#[cfg(any(feature = "mpi", test))]
#[cfg_attr(not(feature = "mpi"), allow(dead_code))]
mod wire;
#[cfg(feature = "mpi")]
mod world;

/// Whether this program was built with MPI.
pub const BUILT: bool = cfg!(feature = "mpi");

pub use error::MpiError;
#[cfg(feature = "mpi")]
pub use group::GroupOptions;
#[cfg(feature = "mpi")]
pub use world::{MpiConfig, MpiGroup, MpiWorld};
