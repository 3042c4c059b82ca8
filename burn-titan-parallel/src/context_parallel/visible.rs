//! What the queries of a rank see of the whole sequence.

use std::iter::zip;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};
use burn_titan_kernels::AttentionMask;

use super::SequenceShards;

/// What the queries of one rank see of the tokens of the whole sequence, for a micro-batch: each its own document up
/// to itself, or the last tokens of that.
///
/// A rank's keys are in the order of the sequence, so what a query sees of them is an interval of their indices.
#[derive(Debug, Clone)]
pub struct Visible {
    shards: SequenceShards,
    rank: usize,
    /// Of each rank's keys; none where no query sees one.
    blocks: Arc<[Option<AttentionMask>]>,
    whole: AttentionMask,
}

impl Visible {
    /// What the tokens of `rank` see. `positions` are those of the tokens of the whole micro-batch in their
    /// documents, `[batch, seq]`; of its document, a token sees the last `window` tokens up to itself, if there is a
    /// window. The masks are made on `device`.
    ///
    /// # Panics
    /// If `positions` does not hold whole sequences, or there is no such rank.
    pub fn new(
        shards: SequenceShards,
        rank: usize,
        positions: &[u32],
        window: Option<usize>,
        device: &Device,
    ) -> Self {
        assert!(rank < shards.ranks(), "rank {rank} of {}", shards.ranks());
        let device = device.clone().inner();
        let length = shards.length(rank);
        let seen = |(at, position): (usize, &u32)| {
            let document = at.saturating_sub(*position as usize);
            let first =
                window.map_or(document, |window| document.max((at + 1).saturating_sub(window)));
            first..at + 1
        };
        let own = shards.take(rank, positions);
        let rows = own.chunks_exact(length);
        let seen: Vec<Range<usize>> =
            rows.flat_map(|row| zip(shards.positions(rank), row).map(seen)).collect();
        let mask = |spans: &[Range<usize>]| {
            let ints = |values: Vec<i32>| {
                let values = Tensor::<1, Int>::from_data(values.as_slice(), &device);
                values.reshape([spans.len() / length, length])
            };
            AttentionMask::new(
                ints(spans.iter().map(|span| span.start as i32).collect()),
                ints(spans.iter().map(|span| span.end as i32).collect()),
            )
        };
        let block = |of: usize| {
            let index = |position| shards.before(of, position);
            let spans: Vec<_> =
                seen.iter().map(|span| index(span.start)..index(span.end)).collect();
            spans.iter().any(|span| !span.is_empty()).then(|| mask(&spans))
        };
        let blocks = (0..shards.ranks()).map(block).collect();
        Self { shards, rank, blocks, whole: mask(&seen) }
    }

    /// Who holds which tokens.
    pub fn shards(&self) -> &SequenceShards {
        &self.shards
    }

    /// Whose queries these are.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What the queries see of a rank's keys, `[batch, length(self.rank())]`; `None` where they see none of them.
    pub fn keys_of(&self, rank: usize) -> Option<&AttentionMask> {
        self.blocks[rank].as_ref()
    }

    /// What they see of the keys of the whole sequence, in its order.
    pub fn whole(&self) -> &AttentionMask {
        &self.whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documents of these lengths, one after the other: the position of each token in its own.
    fn packed(documents: &[u32]) -> Vec<u32> {
        documents.iter().flat_map(|length| 0..*length).collect()
    }

    fn spans(mask: &AttentionMask) -> Vec<Range<usize>> {
        let values = |x: Tensor<2, Int>| -> Vec<i64> { x.into_data().iter::<i64>().collect() };
        let ends = values(mask.end_key());
        zip(values(mask.first_key()), ends).map(|(a, b)| a as usize..b as usize).collect()
    }

    #[test]
    fn masks_of_blocks_are_the_mask_of_the_whole() {
        // Documents of one token, and one that begins at the border of a chunk of 37 tokens for 2, 3 and 5 ranks.
        let documents =
            [vec![37], vec![1; 37], vec![10, 9, 18], vec![7, 30], vec![4, 4, 1, 1, 20, 7]];
        for (ranks, window) in [(1, None), (2, None), (2, Some(5)), (3, Some(12)), (5, None)] {
            let shards = SequenceShards::new(37, ranks).unwrap();
            for [first, second] in [[0, 1], [2, 3], [4, 0]] {
                let rows = [packed(&documents[first]), packed(&documents[second])];
                let positions = rows.concat();
                for rank in 0..ranks {
                    let seen =
                        Visible::new(shards, rank, &positions, window, &Device::flex().autodiff());
                    let whole = spans(seen.whole());
                    for (of, query) in
                        (0..ranks).flat_map(|of| (0..whole.len()).map(move |query| (of, query)))
                    {
                        let keys: Vec<usize> = shards.positions(of).collect();
                        let block = seen.keys_of(of).map(spans);
                        let got =
                            block.map_or(&[][..], |spans| &keys[spans[query].clone()]).to_vec();
                        let want: Vec<usize> =
                            keys.iter().copied().filter(|key| whole[query].contains(key)).collect();
                        assert_eq!(
                            got, want,
                            "{ranks} ranks, query {query} of {rank}, keys of {of}"
                        );
                    }
                    let tokens = shards.positions(rank).chain(shards.positions(rank));
                    for ((token, position), span) in
                        zip(zip(tokens, shards.take(rank, &positions)), whole)
                    {
                        let back = window.unwrap_or(37).min(position as usize + 1);
                        assert_eq!(span, token + 1 - back..token + 1);
                    }
                }
            }
        }
    }

    #[test]
    fn keys_that_nobody_sees_are_left_out() {
        let shards = SequenceShards::new(32, 4).unwrap();
        let blocks = |positions: &[u32], window, rank| {
            let seen = Visible::new(shards, rank, positions, window, &Device::flex());
            (0..4).filter(|of| seen.keys_of(*of).is_some()).collect::<Vec<_>>()
        };
        let one = packed(&[32]);
        assert_eq!(blocks(&one, None, 0), [0, 1, 2, 3]);
        // Rank 0 holds 0..4 and 28..32, rank 1 holds 4..8 and 24..28.
        assert_eq!(blocks(&one, Some(3), 0), [0, 1]);
        assert_eq!(blocks(&one, Some(3), 3), [2, 3]);
        assert_eq!(blocks(&one, Some(1), 2), [2]);
        assert_eq!(blocks(&one, Some(0), 2), [0_usize; 0]);
        assert_eq!(blocks(&packed(&[4; 8]), None, 3), [3]);
        assert_eq!(blocks(&packed(&[8, 16, 8]), None, 1), [0, 1]);
        assert_eq!(blocks(&packed(&[8, 16, 8]), None, 3), [2, 3]);
    }
}
