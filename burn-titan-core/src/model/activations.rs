//! What a unit says of the memory that it takes.

use burn::tensor::DType;
pub use burn_titan_parallel::check::Activations;

/// A micro-batch, as far as memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Of activations, and of the weights they meet.
    pub compute: DType,
    /// Whether the native CPU code computes, which works in single precision, on copies where that is not the dtype.
    pub native: bool,
}

impl Workload {
    /// Its tokens.
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// Bytes of so many elements in the compute dtype.
    pub fn bytes(&self, elements: usize) -> u64 {
        elements as u64 * self.compute.size() as u64
    }
}
