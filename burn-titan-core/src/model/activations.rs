//! What a unit says of the memory that it takes.

use burn::tensor::DType;
pub use burn_titan_parallel::check::Activations;
use burn_titan_parallel::context_parallel::SequenceShards;
use burn_titan_parallel::host::messages_in_flight;
use burn_titan_parallel::placement::shard_range;

use super::tensor_plan::TensorRank;

/// A micro-batch, as far as memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence that this rank has.
    pub seq: usize,
    /// Of activations, and of the weights they meet.
    pub compute: DType,
    /// Whether the native CPU code computes, which works in single precision, on copies where that is not the dtype.
    pub native: bool,
    /// How ranks share it.
    pub sharing: Sharing,
}

/// How ranks share the work on a micro-batch, as the first of them sees it: no other has larger shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// Those that split matrix products. The shapes of a module's parameters are already this rank's.
    pub tensor: TensorRank,
    /// Whether each of these has the logits of its words only.
    pub loss: bool,
    /// Words of the whole vocabulary.
    pub vocabulary: usize,
    /// Chunks in which they run what treats every token alone.
    pub chunks: usize,
    /// The ranks that share each sequence; `None` where this one has whole sequences.
    pub sequences: Option<SequenceShards>,
    /// Whether these gather all keys and values, in place of handing them around.
    pub gathers_keys: bool,
    /// Ranks that have all experts together; 1 where each has a part of every expert.
    pub expert_ranks: usize,
}

impl Sharing {
    /// There is no other rank; then nobody asks how many words there are.
    pub const ALONE: Self = Self {
        tensor: TensorRank::ALONE,
        loss: false,
        vocabulary: 0,
        chunks: 1,
        sequences: None,
        gathers_keys: false,
        expert_ranks: 1,
    };

    /// Whether ranks split matrix products.
    pub fn splits_products(&self) -> bool {
        self.tensor.ranks > 1
    }

    /// Ranks that share each sequence.
    pub fn context_ranks(&self) -> usize {
        self.sequences.map_or(1, |shards| shards.ranks())
    }
}

impl Workload {
    /// Its tokens on this rank, inside of sites ([`super::Context::site`]).
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// This rank's tokens of the residual stream, between sites.
    pub fn stream_tokens(&self) -> usize {
        let TensorRank { ranks, sequence, .. } = self.sharing.tensor;
        if sequence { shard_range(self.tokens(), ranks, 0).len() } else { self.tokens() }
    }

    /// Tokens of a whole sequence.
    pub fn whole_seq(&self) -> usize {
        self.sharing.sequences.map_or(self.seq, |shards| shards.seq())
    }

    /// Bytes of so many elements in the compute dtype.
    pub fn bytes(&self, elements: usize) -> u64 {
        elements as u64 * self.compute.size() as u64
    }

    /// Bytes of messages that are on their way to this rank, on the device that computes, while each of `ranks` ranks
    /// sends so many bytes to every other.
    pub fn messages(&self, ranks: usize, bytes: u64) -> u64 {
        if self.native { messages_in_flight(ranks, bytes) } else { 0 }
    }
}
