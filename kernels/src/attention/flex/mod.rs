//! Attention on the CPU, in tiles of queries and keys with an online softmax.
//!
//! Keys and values are packed once into tiles that the small matrix products read in order. Results
//! are laid out `[batch, seq, heads, head_dim]` and returned as views, since that is what the
//! projections beside attention read and write.

mod backward;
mod forward;
mod pack;
mod softmax;
mod working;

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;

pub use working::working_elements;

use super::Scores;
use crate::flex::{COLUMN_STEP, int_values};

/// Queries of a tile.
const QUERY_TILE: usize = 64;
/// Keys of a tile.
const KEY_TILE: usize = 128;

/// The inputs of one call.
pub(super) struct Problem {
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    /// The keys that each query sees, `[batch, queries]`.
    visible: Vec<Span>,
    scores: Scores,
    sizes: Sizes,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    /// `head_dim`, padded for the matrix products.
    width: usize,
}

impl Sizes {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn key_tiles(&self) -> usize {
        self.keys.div_ceil(KEY_TILE)
    }
}

/// A range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: usize,
    end: usize,
}

impl Span {
    /// The smallest span that holds all of `spans`; empty ones count for nothing.
    fn around(spans: &[Self]) -> Self {
        let seen = || spans.iter().filter(|span| span.first < span.end);
        Self {
            first: seen().map(|span| span.first).min().unwrap_or(0),
            end: seen().map(|span| span.end).max().unwrap_or(0),
        }
    }

    /// The tiles that hold some of these keys.
    fn tiles(self) -> std::ops::Range<usize> {
        self.first / KEY_TILE..self.end.div_ceil(KEY_TILE)
    }

    /// The part inside a tile, counted from the tile's first key.
    #[inline(always)]
    fn within(self, tile: usize) -> std::ops::Range<usize> {
        let start = tile * KEY_TILE;
        let place = |key: usize| key.saturating_sub(start).min(KEY_TILE);
        place(self.first)..place(self.end).max(place(self.first))
    }
}

impl Problem {
    pub(super) fn new(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        first_key: &FlexTensor,
        end_key: &FlexTensor,
        scores: Scores,
    ) -> Self {
        let [batch, heads, queries, head_dim] = query.shape().dims();
        let [_, kv_heads, keys, _] = key.shape().dims();
        let width = head_dim.next_multiple_of(COLUMN_STEP);
        let sizes = Sizes { batch, heads, kv_heads, queries, keys, head_dim, width };
        let key_of = |i: i64| usize::try_from(i).unwrap_or(0).min(keys);
        let visible = std::iter::zip(int_values(first_key), int_values(end_key))
            .map(|(first, end)| Span { first: key_of(first), end: key_of(end) })
            .collect();
        Self { query, key, value, visible, scores, sizes }
    }
}
