//! How a run is spread over ranks: the mesh of ranks, the placement of tensors on it, the
//! communicator, and the program of actions that each rank runs in a step.
//!
//! This crate knows tensors, not models. A training step is a [`Program`]: a list of actions made
//! before the step runs. Parallelism, accumulation and activation checkpointing are ways to write the
//! list ([`step`]); [`check`] proves a list before it runs; the executor of `burn-titan-core` runs it.
//! How ranks find and reach each other is here too: [`launch`] says which rank a process is, and starts local
//! ones; [`host`] carries buffers of host memory between threads and processes, and [`mpi`] does so by MPI; [`communicator`] carries
//! tensors; a [`World`] is all ranks of a run. What ranks do together inside a forward or a backward goes through
//! [`Peers`]: [`tensor_parallel`], and [`context_parallel`], which is attention between ranks that share sequences.
//! [`pipeline`] has the schedules of ranks that each own some stages of the model.

pub mod check;
pub mod communicator;
pub mod context_parallel;
pub mod expert_parallel;
pub mod host;
pub mod join;
pub mod launch;
pub mod mesh;
pub mod mpi;
pub mod nccl;
pub mod peers;
pub mod pipeline;
pub mod placement;
pub mod program;
pub mod step;
pub mod tensor_parallel;
pub mod trace;
pub mod world;

pub use communicator::{
    Buffer, CommError, Communicator, HostCommunicator, OneRank, Reduction, Work,
};
pub use join::WorldOptions;
pub use mesh::{Axis, Degrees, Mesh, MeshError};
pub use mpi::MpiError;
pub use nccl::NcclError;
pub use peers::Peers;
pub use program::{Action, Keep, Program};
pub use tensor_parallel::TensorParallel;
pub use trace::Trace;
pub use world::World;
