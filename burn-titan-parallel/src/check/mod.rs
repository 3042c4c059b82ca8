//! Proving programs before they run.
//!
//! - [`check`]: of one rank, that nothing is used before it is there or after it was freed, and that every
//!   gradient is reduced once.
//! - [`check_all`]: of all ranks of a mesh, that as well, and that every group of ranks does the same operations in
//!   the same order and none waits for ever ([`group`]), and how much memory is alive at most ([`memory`]).
//!
//! Ranks that do the same are a [`Class`] and are looked at once: what it takes to check a mesh grows with its
//! classes, and hardly with its ranks.

pub mod group;
pub mod memory;
mod rank;
pub mod sizes;
#[cfg(test)]
mod tests;
mod walk;

use thiserror::Error;

use crate::mesh::{Axis, Mesh};
use crate::program::Program;
pub use group::{Disagreement, Operation, Scope, Stuck, operations};
pub use memory::{Footprint, Memory, Moment};
pub use rank::{ProgramError, check};
pub use sizes::{Activations, Exchanges, Quantized, Sizes, Tied, UnitSizes};
pub use walk::footprint;

/// Ranks that do the same with tensors of the same sizes.
#[derive(Debug, Clone)]
pub struct Class {
    /// What each of them does in a step.
    pub program: Program,
    /// What it does it with. Shards differ by an element: these are the largest.
    pub sizes: Sizes,
}

/// Why the programs of all ranks are refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CheckError {
    /// A rank's own program is wrong.
    #[error("rank {rank}, {error}")]
    Program {
        /// The first rank that runs it.
        rank: usize,
        /// What is wrong with it.
        error: ProgramError,
    },
    /// Two ranks of a group do not do the same.
    #[error(transparent)]
    Disagreement(#[from] Box<Disagreement>),
    /// Ranks wait for each other.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// Proves the programs of all ranks of a mesh, of which `class_of` gives the class of each, and returns the memory
/// that each class takes.
///
/// # Errors
/// The first rule that is broken, by which rank, where.
///
/// # Panics
/// If `class_of` names a class that is not there.
pub fn check_all(
    mesh: &Mesh,
    classes: &[Class],
    class_of: impl Fn(usize) -> usize,
) -> Result<Vec<Footprint>, CheckError> {
    let several = |axis| mesh.degree(axis) > 1;
    let mut proved = vec![false; classes.len()];
    for rank in 0..mesh.world_size() {
        let class = class_of(rank);
        if !std::mem::replace(&mut proved[class], true) {
            let sharing = rank::Sharing {
                copies: several(Axis::DataReplicate),
                split: several(Axis::Tensor),
                experts: classes[class].sizes.expert_loads > 0,
            };
            rank::prove(&classes[class].program, sharing)
                .map_err(|error| CheckError::Program { rank, error })?;
        }
    }
    group::check(mesh, classes, class_of)?;
    Ok(classes.iter().map(|class| footprint(&class.program, &class.sizes)).collect())
}
