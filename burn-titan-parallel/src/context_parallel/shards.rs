//! Which tokens of a sequence each rank holds.

use std::ops::Range;

use thiserror::Error;

use crate::placement::shard_range;

/// A sequence that is shared by ranks, in the order that balances causal attention.
///
/// The sequence is cut into twice as many chunks as there are ranks, by [`shard_range`], so that nothing is padded.
/// Rank `r` of `n` holds the chunks `r` and `2 n - 1 - r`: one from the head and one from the tail, which together
/// see as many keys as those of any other rank (Llama Team, 2024, section 3.3.2). Ranks hold equally many tokens, up
/// to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceShards {
    seq: usize,
    ranks: usize,
}

/// A sequence has not enough tokens for the ranks that share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "a sequence of {seq} tokens cannot be shared by {ranks} {}: it takes {} tokens or more, or a smaller context_parallel_degree",
    if *.ranks == 1 { "rank" } else { "ranks, each of which holds two pieces of it" },
    least(*.ranks)
)]
pub struct TooShort {
    /// Tokens of the sequence.
    pub seq: usize,
    /// Ranks that were to share it.
    pub ranks: usize,
}

/// Fewest tokens that so many ranks share.
fn least(ranks: usize) -> usize {
    if ranks == 1 { 1 } else { 2 * ranks }
}

impl SequenceShards {
    /// Sequences of `seq` tokens, shared by `ranks` ranks.
    ///
    /// # Errors
    /// If there are fewer than two tokens for each of several ranks, or none at all.
    ///
    /// # Panics
    /// If there is no rank.
    pub fn new(seq: usize, ranks: usize) -> Result<Self, TooShort> {
        assert!(ranks > 0, "a sequence is shared by one rank or more");
        if seq < least(ranks) { Err(TooShort { seq, ranks }) } else { Ok(Self { seq, ranks }) }
    }

    /// Tokens of the whole sequence.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Ranks that share it.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The tokens of a rank: two ranges, the first before the second. A rank alone may have an empty second one.
    pub fn ranges(&self, rank: usize) -> [Range<usize>; 2] {
        let chunks = 2 * self.ranks;
        [rank, chunks - 1 - rank].map(|chunk| shard_range(self.seq, chunks, chunk))
    }

    /// How many tokens a rank holds.
    pub fn length(&self, rank: usize) -> usize {
        self.ranges(rank).iter().map(Range::len).sum()
    }

    /// The tokens of a rank, in the order in which it holds them, which is their order in the sequence.
    pub fn positions(&self, rank: usize) -> impl Iterator<Item = usize> + use<> {
        self.ranges(rank).into_iter().flatten()
    }

    /// A rank's part of what there is for each token: of `[batch, seq]`, `[batch, length(rank)]`.
    ///
    /// # Panics
    /// If `whole` does not hold whole sequences.
    pub fn take<T: Copy>(&self, rank: usize, whole: &[T]) -> Vec<T> {
        assert_eq!(whole.len() % self.seq, 0, "sequences of {} tokens", self.seq);
        let ranges = self.ranges(rank);
        let rows = whole.chunks_exact(self.seq);
        rows.flat_map(|row| ranges.iter().flat_map(|range| &row[range.clone()])).copied().collect()
    }

    /// How many of a rank's tokens come before this position of the sequence.
    pub(super) fn before(&self, rank: usize, position: usize) -> usize {
        let inside = |range: &Range<usize>| position.clamp(range.start, range.end) - range.start;
        self.ranges(rank).iter().map(inside).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_held_once_and_nothing_is_padded() {
        for (seq, ranks) in [(1, 1), (2, 1), (16, 1), (4, 2), (37, 2), (129, 3), (16, 4), (37, 5)] {
            let shards = SequenceShards::new(seq, ranks).unwrap();
            let mut held: Vec<usize> = (0..ranks).flat_map(|r| shards.positions(r)).collect();
            let lengths: Vec<usize> = (0..ranks).map(|r| shards.length(r)).collect();
            assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1);
            held.sort_unstable();
            assert!(held.into_iter().eq(0..seq));
            for (rank, length) in lengths.into_iter().enumerate() {
                let own: Vec<usize> = shards.positions(rank).collect();
                assert!(own.is_sorted() && own.len() == length);
                for position in 0..=seq {
                    let before = own.iter().filter(|p| **p < position).count();
                    assert_eq!(shards.before(rank, position), before);
                }
            }
        }
    }

    #[test]
    fn the_head_goes_with_the_tail() {
        let shards = SequenceShards::new(37, 2).unwrap();
        assert_eq!(shards.ranges(0), [0..10, 28..37]);
        assert_eq!(shards.ranges(1), [10..19, 19..28]);
        let whole: Vec<usize> = (0..74).collect();
        let want: Vec<usize> = (10..28).chain(47..65).collect();
        assert_eq!(shards.take(1, &whole), want);
    }

    #[test]
    fn causal_work_is_the_same_for_all() {
        let shards = SequenceShards::new(1024, 4).unwrap();
        let work: Vec<usize> = (0..4).map(|r| shards.positions(r).map(|p| p + 1).sum()).collect();
        assert_eq!(work, [work[0]; 4]);
    }

    #[test]
    fn short_sequences_are_refused() {
        let refused = |seq, ranks| SequenceShards::new(seq, ranks).unwrap_err().to_string();
        assert_eq!(
            refused(7, 4),
            "a sequence of 7 tokens cannot be shared by 4 ranks, each of which holds two pieces of it: \
             it takes 8 tokens or more, or a smaller context_parallel_degree"
        );
        assert!(refused(0, 1).starts_with("a sequence of 0 tokens cannot be shared by 1 rank: "));
        assert!(SequenceShards::new(1, 1).is_ok() && SequenceShards::new(8, 4).is_ok());
    }
}
