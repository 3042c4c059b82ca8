//! Attention on the CPU, in tiles of queries and keys with an online softmax.
//!
//! One task is one key head of one sequence with all query heads that share it, so that the gradients
//! of keys and values are summed in a fixed order by one thread. Memory beyond inputs and outputs is
//! `O(seq x head_dim)` a thread. With `P = exp(scale Q K^T - lse)` and `D = rowsum(dO * O)`:
//!
//! `dV = P^T dO`, `dS = P * (dO V^T - D)`, `dQ = scale dS K`, `dK = scale dS^T Q`.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{
    F32View, Strided, dot, exp, float_tensor, int_values, max, multiply_add, simd_fn, sum,
};

const QUERY_TILE: usize = 64;
const KEY_TILE: usize = 128;

/// The inputs of one call.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    first_key: Vec<usize>,
    scale: f32,
    sizes: Sizes,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    kv_heads: usize,
    group: usize,
    seq: usize,
    head_dim: usize,
}

impl Sizes {
    fn head(&self) -> usize {
        self.seq * self.head_dim
    }
}

/// A range of queries and the range of keys that any of them sees, in one tile.
struct Tile {
    query: usize,
    rows: usize,
    key: usize,
    columns: usize,
}

impl Problem {
    pub(super) fn new(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        first_key: FlexTensor,
        scale: f32,
    ) -> Self {
        let [batch, heads, seq, head_dim] = query.shape().dims();
        let [_, kv_heads, _, _] = key.shape().dims();
        assert!(heads % kv_heads == 0, "{heads} query heads over {kv_heads} key heads");
        let sizes = Sizes { batch, kv_heads, group: heads / kv_heads, seq, head_dim };
        let first_key: Vec<usize> =
            int_values(&first_key).into_iter().map(|i| i.max(0) as usize).collect();
        assert_eq!(first_key.len(), batch * seq, "first_key is [batch, seq]");
        Self { query, key, value, first_key, scale, sizes }
    }

    /// The output `[batch, heads, seq, head_dim]` and the log-sum-exp of each row of scores.
    pub(super) fn forward(&self) -> (FlexTensor, Vec<f32>) {
        let Sizes { batch, kv_heads, group, seq, .. } = self.sizes;
        let head = self.sizes.head();
        let mut output = vec![0.0; batch * kv_heads * group * head];
        let mut log_sum_exp = vec![0.0; batch * kv_heads * group * seq];
        if head > 0 {
            output
                .par_chunks_mut(group * head)
                .zip(log_sum_exp.par_chunks_mut(group * seq))
                .enumerate()
                .for_each(|(task, (output, log_sum_exp))| {
                    forward_task(self, task, output, log_sum_exp);
                });
        }
        (float_tensor(output, self.query.shape(), self.query.dtype()), log_sum_exp)
    }

    #[inline(always)]
    fn forward_group(&self, task: usize, output: &mut [f32], log_sum_exp: &mut [f32]) {
        let Sizes { kv_heads, group, seq, head_dim, .. } = self.sizes;
        let (batch, kv_head) = (task / kv_heads, task % kv_heads);
        let keys = transposed(&self.head(&self.key, batch, kv_head, 1.0), seq, head_dim);
        let values = self.head(&self.value, batch, kv_head, 1.0);
        let first_key = &self.first_key[batch * seq..][..seq];
        let mut scores = vec![0.0; QUERY_TILE * KEY_TILE];
        for g in 0..group {
            let query = self.head(&self.query, batch, kv_head * group + g, self.scale);
            let output = &mut output[g * seq * head_dim..][..seq * head_dim];
            let lse = &mut log_sum_exp[g * seq..][..seq];
            for start in (0..seq).step_by(QUERY_TILE) {
                let rows = QUERY_TILE.min(seq - start);
                let mut row_max = [f32::NEG_INFINITY; QUERY_TILE];
                let mut row_sum = [0.0_f32; QUERY_TILE];
                for tile in key_tiles(first_key, start, rows) {
                    score_tile(&tile, &query, &keys, seq, head_dim, first_key, &mut scores);
                    for r in 0..rows {
                        let row = &mut scores[r * KEY_TILE..][..tile.columns];
                        let new_max = row_max[r].max(max(row));
                        if new_max == f32::NEG_INFINITY {
                            row.fill(0.0);
                            continue;
                        }
                        let shrink = exp(row_max[r] - new_max);
                        for x in row.iter_mut() {
                            *x = exp(*x - new_max);
                        }
                        row_max[r] = new_max;
                        row_sum[r] = row_sum[r] * shrink + sum(row);
                        for y in &mut output[(start + r) * head_dim..][..head_dim] {
                            *y *= shrink;
                        }
                    }
                    multiply_add(
                        [rows, head_dim, tile.columns],
                        Strided { values: &scores, row: KEY_TILE, column: 1 },
                        &values[tile.key * head_dim..],
                        head_dim,
                        &mut output[start * head_dim..],
                        head_dim,
                    );
                }
                for r in 0..rows {
                    let inverse = 1.0 / row_sum[r];
                    for y in &mut output[(start + r) * head_dim..][..head_dim] {
                        *y *= inverse;
                    }
                    lse[start + r] = row_max[r] + row_sum[r].ln();
                }
            }
        }
    }

    /// The gradients of query, key and value.
    pub(super) fn backward(
        &self,
        output: FlexTensor,
        log_sum_exp: &[f32],
        gradient: FlexTensor,
    ) -> [FlexTensor; 3] {
        let Sizes { batch, kv_heads, group, seq, .. } = self.sizes;
        let head = self.sizes.head();
        let mut query = vec![0.0; batch * kv_heads * group * head];
        let mut key = vec![0.0; batch * kv_heads * head];
        let mut value = vec![0.0; batch * kv_heads * head];
        if head > 0 {
            query
                .par_chunks_mut(group * head)
                .zip(key.par_chunks_mut(head).zip(value.par_chunks_mut(head)))
                .zip(log_sum_exp.par_chunks(group * seq))
                .enumerate()
                .for_each(|(task, ((query, (key, value)), lse))| {
                    backward_task(self, task, (&output, lse), &gradient, [query, key, value]);
                });
        }
        [
            float_tensor(query, self.query.shape(), self.query.dtype()),
            float_tensor(key, self.key.shape(), self.key.dtype()),
            float_tensor(value, self.value.shape(), self.value.dtype()),
        ]
    }

    #[inline(always)]
    fn backward_group(
        &self,
        task: usize,
        (output, log_sum_exp): (&FlexTensor, &[f32]),
        gradient: &FlexTensor,
        [query_gradient, key_gradient, value_gradient]: [&mut [f32]; 3],
    ) {
        let Sizes { kv_heads, group, seq, head_dim, .. } = self.sizes;
        let (batch, kv_head) = (task / kv_heads, task % kv_heads);
        let keys = self.head(&self.key, batch, kv_head, 1.0);
        let keys_t = transposed(&keys, seq, head_dim);
        let values_t = transposed(&self.head(&self.value, batch, kv_head, 1.0), seq, head_dim);
        let first_key = &self.first_key[batch * seq..][..seq];
        let mut p = vec![0.0; QUERY_TILE * KEY_TILE];
        let mut ds = vec![0.0; QUERY_TILE * KEY_TILE];
        for g in 0..group {
            let head = kv_head * group + g;
            let query = self.head(&self.query, batch, head, self.scale);
            let d_out = self.head(gradient, batch, head, 1.0);
            let out = self.head(output, batch, head, 1.0);
            let lse = &log_sum_exp[g * seq..][..seq];
            let d_query = &mut query_gradient[g * seq * head_dim..][..seq * head_dim];
            for start in (0..seq).step_by(QUERY_TILE) {
                let rows = QUERY_TILE.min(seq - start);
                let d_out_tile = &d_out[start * head_dim..][..rows * head_dim];
                let mut d = [0.0_f32; QUERY_TILE];
                for (r, d) in d.iter_mut().enumerate().take(rows) {
                    let row = (start + r) * head_dim;
                    *d = dot(&d_out[row..][..head_dim], &out[row..][..head_dim]);
                }
                for tile in key_tiles(first_key, start, rows) {
                    score_tile(&tile, &query, &keys_t, seq, head_dim, first_key, &mut p);
                    clear(&mut ds, rows, tile.columns);
                    multiply_add(
                        [rows, tile.columns, head_dim],
                        Strided { values: d_out_tile, row: head_dim, column: 1 },
                        &values_t[tile.key..],
                        seq,
                        &mut ds,
                        KEY_TILE,
                    );
                    for r in 0..rows {
                        let p = &mut p[r * KEY_TILE..][..tile.columns];
                        let ds = &mut ds[r * KEY_TILE..][..tile.columns];
                        let (lse, d) = (lse[start + r], d[r]);
                        for (p, ds) in p.iter_mut().zip(ds) {
                            *p = exp(*p - lse);
                            *ds = *p * (*ds - d);
                        }
                    }
                    multiply_add(
                        [tile.columns, head_dim, rows],
                        Strided { values: &p, row: 1, column: KEY_TILE },
                        d_out_tile,
                        head_dim,
                        &mut value_gradient[tile.key * head_dim..],
                        head_dim,
                    );
                    multiply_add(
                        [tile.columns, head_dim, rows],
                        Strided { values: &ds, row: 1, column: KEY_TILE },
                        &query[start * head_dim..],
                        head_dim,
                        &mut key_gradient[tile.key * head_dim..],
                        head_dim,
                    );
                    multiply_add(
                        [rows, head_dim, tile.columns],
                        Strided { values: &ds, row: KEY_TILE, column: 1 },
                        &keys[tile.key * head_dim..],
                        head_dim,
                        &mut d_query[start * head_dim..],
                        head_dim,
                    );
                }
            }
            for x in d_query {
                *x *= self.scale;
            }
        }
    }

    /// One head `[seq, head_dim]` of a `[batch, heads, seq, head_dim]` tensor of any strides, scaled.
    #[inline(always)]
    fn head(&self, tensor: &FlexTensor, batch: usize, head: usize, scale: f32) -> Vec<f32> {
        let Sizes { seq, head_dim, .. } = self.sizes;
        let layout = tensor.layout();
        let strides = layout.strides();
        let mut out = Vec::with_capacity(seq * head_dim);
        if tensor.dtype() == DType::F32 && strides[3] == 1 {
            let values: &[f32] = tensor.storage();
            let base = layout.start_offset() as isize
                + batch as isize * strides[0]
                + head as isize * strides[1];
            for row in 0..seq {
                let start = (base + row as isize * strides[2]) as usize;
                out.extend(values[start..start + head_dim].iter().map(|x| x * scale));
            }
        } else {
            let one = tensor.narrow(0, batch, 1).narrow(1, head, 1);
            out.extend(F32View::new(&one).iter().map(|x| x * scale));
        }
        out
    }
}

simd_fn! {
    /// The work of one forward task.
    fn forward_task(
        problem: &'a Problem,
        task: usize,
        output: &'a mut [f32],
        log_sum_exp: &'a mut [f32],
    ) -> () {
        problem.forward_group(task, output, log_sum_exp);
    }
}

simd_fn! {
    /// The work of one backward task.
    fn backward_task(
        problem: &'a Problem,
        task: usize,
        forward: (&'a FlexTensor, &'a [f32]),
        gradient: &'a FlexTensor,
        gradients: [&'a mut [f32]; 3],
    ) -> () {
        problem.backward_group(task, forward, gradient, gradients);
    }
}

/// The tiles of keys that some query of `start..start + rows` sees.
#[inline(always)]
fn key_tiles(first_key: &[usize], start: usize, rows: usize) -> impl Iterator<Item = Tile> {
    let first = first_key[start..start + rows].iter().copied().min().unwrap_or(0);
    let end = start + rows;
    (first / KEY_TILE * KEY_TILE..end).step_by(KEY_TILE).map(move |key| Tile {
        query: start,
        rows,
        key,
        columns: KEY_TILE.min(end - key),
    })
}

/// `scores = Q K^T` of one tile, minus infinity where the query does not see the key.
#[inline(always)]
fn score_tile(
    tile: &Tile,
    query: &[f32],
    keys: &[f32],
    seq: usize,
    head_dim: usize,
    first_key: &[usize],
    scores: &mut [f32],
) {
    clear(scores, tile.rows, tile.columns);
    multiply_add(
        [tile.rows, tile.columns, head_dim],
        Strided { values: &query[tile.query * head_dim..], row: head_dim, column: 1 },
        &keys[tile.key..],
        seq,
        scores,
        KEY_TILE,
    );
    for r in 0..tile.rows {
        let position = tile.query + r;
        let row = &mut scores[r * KEY_TILE..][..tile.columns];
        let visible = first_key[position].saturating_sub(tile.key).min(tile.columns);
        row[..visible].fill(f32::NEG_INFINITY);
        let end = (position + 1).saturating_sub(tile.key).min(tile.columns);
        row[end..].fill(f32::NEG_INFINITY);
    }
}

#[inline(always)]
fn clear(tile: &mut [f32], rows: usize, columns: usize) {
    for r in 0..rows {
        tile[r * KEY_TILE..][..columns].fill(0.0);
    }
}

/// `[rows, columns]` to `[columns, rows]`.
#[inline(always)]
fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (r, row) in x.chunks_exact(columns.max(1)).enumerate().take(rows) {
        for (c, value) in row.iter().enumerate() {
            out[c * rows + r] = *value;
        }
    }
    out
}
