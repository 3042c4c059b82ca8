//! Context parallelism: every rank holds some tokens of each sequence.
//!
//! - [`SequenceShards`]: which tokens, so that causal attention is the same work for all.

mod shards;

pub use shards::{SequenceShards, TooShort};
