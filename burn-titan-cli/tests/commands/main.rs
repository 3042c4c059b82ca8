//! The `burn-titan` binary as a user meets it: what it prints, what it leaves, its exit codes.

mod bench;
mod broken;
mod convert;
mod devices;
mod folders;
mod generate;
mod limits;
mod models;
#[cfg(feature = "mpi")]
mod mpi;
mod plan;
mod processes;
mod ranks;
mod sandbox;
mod threads;
mod train;
