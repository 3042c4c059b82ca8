//! The forward pass: a task is a tile of queries with all its heads.

use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::pack::{Rows, tiles, transposed_tiles};
use super::softmax::{cap, exponentials};
use super::{KEY_TILE, Problem, QUERY_TILE, Sizes, Span};
use crate::flex::{COLUMN_STEP, Strided, float_tensor, max, multiply_tile, simd_fn};

/// What all tasks read.
struct Forward<'a> {
    problem: &'a Problem,
    query: Rows<'a>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Problem {
    /// The output `[batch, heads, queries, head_dim]` and the log-sum-exp `[batch, heads, queries]`.
    pub(in super::super) fn forward(&self) -> (FlexTensor, FlexTensor) {
        let Sizes { batch, heads, queries, head_dim, .. } = self.sizes;
        let forward = Forward {
            problem: self,
            query: Rows::new(&self.query),
            keys: transposed_tiles(&self.key, self.sizes),
            values: tiles(&self.value, self.sizes),
        };
        let mut output = vec![0.0; batch * queries * heads * head_dim];
        let sums: Vec<Vec<Vec<f32>>> = output
            .par_chunks_mut((queries * heads * head_dim).max(1))
            .enumerate()
            .map(|(batch, output)| {
                output
                    .par_chunks_mut(QUERY_TILE * heads * head_dim)
                    .enumerate()
                    .map(|(tile, output)| forward_tile(&forward, batch, tile * QUERY_TILE, output))
                    .collect()
            })
            .collect();
        let shape = Shape::new([batch, queries, heads, head_dim]);
        let output = float_tensor(output, shape, self.query.dtype()).transpose(1, 2);
        (output, in_order(&sums, self.sizes))
    }
}

/// The log-sum-exps of tiles, each `[heads, rows]`, as `[batch, heads, queries]`.
fn in_order(sums: &[Vec<Vec<f32>>], sizes: Sizes) -> FlexTensor {
    let Sizes { batch, heads, queries, .. } = sizes;
    let mut all = Vec::with_capacity(batch * heads * queries);
    for tiles in sums {
        for head in 0..heads {
            for tile in tiles {
                let rows = tile.len() / heads;
                all.extend_from_slice(&tile[head * rows..][..rows]);
            }
        }
    }
    float_tensor(all, Shape::new([batch, heads, queries]), DType::F32)
}

simd_fn! {
    /// Fills `output`, `[rows, heads, head_dim]`; returns the log-sum-exps `[heads, rows]`.
    fn forward_tile(
        forward: &'a Forward<'a>,
        batch: usize,
        start: usize,
        output: &'a mut [f32],
    ) -> Vec<f32> {
        let Sizes { heads, queries, head_dim, width, .. } = forward.problem.sizes;
        let rows = QUERY_TILE.min(queries - start);
        let visible = &forward.problem.visible[batch * queries + start..][..rows];
        let mut scratch = Scratch::new(width);
        let mut log_sum_exp = vec![f32::NEG_INFINITY; heads * rows];
        for head in 0..heads {
            forward.head(batch, head, start, visible, &mut scratch);
            for r in 0..rows {
                let sum = scratch.sum[r];
                if sum != 0.0 {
                    log_sum_exp[head * rows + r] = scratch.top[r] + sum.ln();
                }
                let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                let out = &mut output[(r * heads + head) * head_dim..][..head_dim];
                for (out, x) in out.iter_mut().zip(&scratch.output[r * width..]) {
                    *out = x * inverse;
                }
            }
        }
        log_sum_exp
    }
}

/// The tiles that a task works on, and the online softmax of each row.
struct Scratch {
    query: Vec<f32>,
    scores: Vec<f32>,
    output: Vec<f32>,
    top: [f32; QUERY_TILE],
    sum: [f32; QUERY_TILE],
}

impl Scratch {
    fn new(width: usize) -> Self {
        Self {
            query: vec![0.0; QUERY_TILE * width],
            scores: vec![0.0; QUERY_TILE * KEY_TILE],
            output: vec![0.0; QUERY_TILE * width],
            top: [0.0; QUERY_TILE],
            sum: [0.0; QUERY_TILE],
        }
    }
}

impl Forward<'_> {
    /// Leaves the unnormalised output, the maximum and the sum of each row in `scratch`.
    #[inline(always)]
    fn head(
        &self,
        batch: usize,
        head: usize,
        start: usize,
        visible: &[Span],
        scratch: &mut Scratch,
    ) {
        let Problem { sizes, scores, .. } = *self.problem;
        let Sizes { kv_heads, head_dim, width, .. } = sizes;
        let Scratch { query, scores: s, output, top, sum } = scratch;
        for (r, row) in query.chunks_exact_mut(width).enumerate().take(visible.len()) {
            self.query.read([batch, head, start + r], scores.scale, &mut row[..head_dim]);
        }
        output.fill(0.0);
        top.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        let kv_head = batch * kv_heads + head / sizes.group();
        let seen = Span::around(visible);
        for tile in seen.tiles() {
            let index = kv_head * sizes.key_tiles() + tile;
            let columns = seen.within(tile).end.next_multiple_of(COLUMN_STEP);
            multiply_tile::<false>(
                [visible.len(), columns, head_dim],
                Strided { values: query, row: width, column: 1 },
                &self.keys[index * KEY_TILE * head_dim..][..KEY_TILE * head_dim],
                KEY_TILE,
                s,
                KEY_TILE,
            );
            for (r, span) in visible.iter().enumerate() {
                let row = &mut s[r * KEY_TILE..][..columns];
                let seen = span.within(tile);
                if seen.is_empty() {
                    row.fill(0.0);
                    continue;
                }
                cap(&mut row[seen.clone()], scores);
                let new_top = top[r].max(max(&row[seen.clone()]));
                if new_top > top[r] {
                    let shrink = (top[r] - new_top).exp();
                    sum[r] *= shrink;
                    for y in &mut output[r * width..][..width] {
                        *y *= shrink;
                    }
                    top[r] = new_top;
                }
                sum[r] += exponentials(row, seen, new_top);
            }
            multiply_tile::<true>(
                [visible.len(), width, columns],
                Strided { values: s, row: KEY_TILE, column: 1 },
                &self.values[index * KEY_TILE * width..][..KEY_TILE * width],
                width,
                output,
                width,
            );
        }
    }
}
