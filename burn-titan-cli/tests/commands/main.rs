//! The `burn-titan` binary as a user meets it: what it prints, what it leaves, its exit codes.

mod broken;
mod convert;
mod generate;
mod models;
mod limits;
mod sandbox;
mod train;
