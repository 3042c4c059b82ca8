//! What the native code holds beside its inputs and results.

use super::{KEY_TILE, Sizes, backward};
use crate::flex::COLUMN_STEP;

/// Most f32 elements that the native [`attention()`](crate::attention()) of causal sequences holds at once beside its
/// inputs and its results: forward, and backward.
pub fn working_elements(
    batch: usize,
    heads: usize,
    kv_heads: usize,
    seq: usize,
    head_dim: usize,
) -> [usize; 2] {
    let width = head_dim.next_multiple_of(COLUMN_STEP);
    let sizes = Sizes { batch, heads, kv_heads, queries: seq, keys: seq, head_dim, width };
    let tiles = batch * kv_heads * sizes.key_tiles() * KEY_TILE;
    // Keys and values, packed; the backward has keys both ways.
    let forward = tiles * (head_dim + width);
    let packed = tiles * (2 * head_dim + width);
    // Then every task's sums: all queries, and the keys and values up to the last query of each split.
    let (splits, split) = backward::splits(sizes);
    let seen: usize = (1..=splits).map(|i| (i * split).min(seq).next_multiple_of(KEY_TILE)).sum();
    let parts = batch * seq * heads * head_dim + 2 * batch * kv_heads * seen * width;
    // The packed ones go before the results come.
    let results = batch * seq * head_dim * (heads + 2 * kv_heads);
    [forward, parts + packed.saturating_sub(results)]
}
