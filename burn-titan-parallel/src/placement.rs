//! How one tensor lies on the ranks of a mesh axis.

use std::ops::Range;

/// How one tensor lies on the ranks of a mesh axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Every rank holds the whole tensor.
    Replicate,
    /// Each rank holds a range of this dim; see [`shard_range`].
    Shard(usize),
    /// Every rank holds a full-size summand; the tensor is their sum.
    Partial,
}

/// The indices of a dim of `length` that `rank` of `ranks` holds: ranges in order whose lengths differ
/// by at most 1, the longer ones first. More ranks than indices leave the last ones empty.
pub fn shard_range(length: usize, ranks: usize, rank: usize) -> Range<usize> {
    let (size, longer) = (length / ranks, length % ranks);
    let start = rank * size + rank.min(longer);
    start..start + size + usize::from(rank < longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_tile_the_dim() {
        for length in [0, 1, 5, 7, 331] {
            for ranks in 1..9 {
                let ranges: Vec<_> = (0..ranks).map(|r| shard_range(length, ranks, r)).collect();
                assert_eq!(ranges[0].start, 0);
                assert_eq!(ranges[ranks - 1].end, length);
                assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
                let (long, short) = (ranges[0].len(), ranges[ranks - 1].len());
                assert!(long - short <= 1);
            }
        }
    }
}
