//! What the equivalence tests share.
//!
//! - [`golden`]: the reference numbers in `tests/golden`;
//! - [`tiny`]: the golden models on the executor, and micro-batches made by hand;
//! - [`numbers`]: seeded noise, tensors from slices and back, comparisons;
//! - [`runs`]: small training runs in temporary folders, and what they left;
//! - [`counting`]: an allocator that counts;
//! - [`mod@reference`]: the kernels' mathematics in f64, plain loops, and derivatives by differences.

pub mod counting;
pub mod golden;
pub mod numbers;
pub mod reference;
pub mod runs;
pub mod tiny;
