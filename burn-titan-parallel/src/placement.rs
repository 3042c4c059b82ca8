//! How one tensor lies on the ranks of a mesh axis.

use std::ops::Range;

/// The indices of a dim of `length` that `rank` of `ranks` holds: ranges in order whose lengths differ
/// by at most 1, the longer ones first. More ranks than indices leave the last ones empty.
pub fn shard_range(length: usize, ranks: usize, rank: usize) -> Range<usize> {
    let (size, longer) = (length / ranks, length % ranks);
    let start = rank * size + rank.min(longer);
    start..start + size + usize::from(rank < longer)
}

/// Tensors laid out flat, one after the other, and cut into one contiguous shard a rank, wherever the cuts
/// fall: shards differ by at most one element, whatever the shapes, and the shards of all ranks, one after the
/// other, are the tensors again, with nothing to move or to pad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatBucket {
    /// Where each tensor begins, and the end of the last.
    starts: Vec<usize>,
    ranks: usize,
}

impl FlatBucket {
    /// A bucket of tensors of these lengths (in elements), shared by so many ranks.
    pub fn new(lengths: impl IntoIterator<Item = usize>, ranks: usize) -> Self {
        let mut starts = vec![0];
        for length in lengths {
            starts.push(starts[starts.len() - 1] + length);
        }
        Self { starts, ranks }
    }

    /// Elements of all tensors.
    pub fn elements(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Elements of each rank's shard, in the order of ranks.
    pub fn shard_lengths(&self) -> Vec<usize> {
        (0..self.ranks).map(|rank| self.shard(rank).len()).collect()
    }

    /// Which elements of a tensor a rank holds; empty where its shard does not reach the tensor.
    pub fn piece(&self, tensor: usize, rank: usize) -> Range<usize> {
        let (start, end) = (self.starts[tensor], self.starts[tensor + 1]);
        let shard = self.shard(rank);
        let inside = |at: usize| at.clamp(start, end) - start;
        inside(shard.start)..inside(shard.end)
    }

    fn shard(&self, rank: usize) -> Range<usize> {
        shard_range(self.elements(), self.ranks, rank)
    }
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

    #[test]
    fn pieces_of_a_bucket_tile_its_tensors() {
        let lengths = [7, 0, 1, 64, 331, 5];
        for ranks in 1..9 {
            let bucket = FlatBucket::new(lengths, ranks);
            assert_eq!(bucket.elements(), 408);
            for rank in 0..ranks {
                let held: usize = (0..6).map(|tensor| bucket.piece(tensor, rank).len()).sum();
                assert_eq!(held, bucket.shard_lengths()[rank]);
                assert!(held.abs_diff(408 / ranks) <= 1);
            }
            for (tensor, length) in lengths.into_iter().enumerate() {
                let mut next = 0;
                for piece in (0..ranks).map(|rank| bucket.piece(tensor, rank)) {
                    assert!(piece.is_empty() || piece.start == next, "{piece:?} after {next}");
                    next += piece.len();
                }
                assert_eq!(next, length);
            }
        }
    }
}
