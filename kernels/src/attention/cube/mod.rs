//! Attention on CubeCL devices.
//!
//! Where the device has matrix units for them, f16 and bf16 go to the kernels in `matrix/`. The rest is
//! done here, in f32 arithmetic on ordinary units: a cube of 64 units owns a tile of 32 queries (or keys)
//! of one head; each unit keeps a 4 x 4 block of the tile's scores, and of the gradients, in registers.
//! 9.4 KiB of shared memory whatever the head_dim, at most 7 tensors a kernel, no subgroup operations, no
//! atomics: this runs on every WebGPU adapter.
//! The backward is three kernels: `D`, then `dQ` by query tile, then `dK` and `dV` by key tile, summed
//! over the group.

mod backward;
mod forward;
mod matrix;
mod tier;
mod tile;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::slice;
use burn_cubecl::tensor::CubeTensor;

use super::{MAX_HEAD_DIM, Scores};
use crate::cube::{cubes, element, elementwise, empty, into_contiguous};
pub use tier::{Tier, with_tier};
use tile::{TILE, UNITS};

/// The inputs of one call.
pub(super) struct Problem {
    query: CubeTensor,
    key: CubeTensor,
    value: CubeTensor,
    /// First and end key of each query, `[batch, queries, 2]` in u32.
    visible: CubeTensor,
    scores: Scores,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
}

impl Problem {
    pub(super) fn new(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        first_key: CubeTensor,
        end_key: CubeTensor,
        scores: Scores,
    ) -> Self {
        let [batch, heads, queries, head_dim] = query.shape().dims();
        let [_, kv_heads, keys, _] = key.shape().dims();
        assert!(head_dim <= MAX_HEAD_DIM, "a head_dim of {head_dim}, over {MAX_HEAD_DIM}");
        let visible = visible(first_key, end_key, keys);
        let [query, key, value] = [query, key, value].map(readable);
        Self { query, key, value, visible, scores, batch, heads, kv_heads, queries, keys, head_dim }
    }

    /// The output `[batch, heads, queries, head_dim]` and the log-sum-exp `[batch, heads, queries]`.
    pub(super) fn forward(self) -> (CubeTensor, CubeTensor) {
        if let Some(results) = self.matrix_forward() {
            return results;
        }
        let output = self.rows_like(&self.query, self.heads, self.queries);
        let log_sum_exp = empty(&self.query, [self.batch, self.heads, self.queries], DType::F32);
        let tiles = self.queries.div_ceil(TILE);
        let count = tiles * self.heads * self.batch;
        if count > 0 {
            forward::kernel::forward::launch(
                &output.client,
                cubes(count),
                CubeDim::new_1d(UNITS as u32),
                self.query.clone().into_tensor_arg(),
                self.key.into_tensor_arg(),
                self.value.into_tensor_arg(),
                self.visible.into_tensor_arg(),
                output.clone().into_tensor_arg(),
                log_sum_exp.clone().into_tensor_arg(),
                count,
                self.scores.scale,
                self.scores.softcap.unwrap_or(0.0),
                f32::NEG_INFINITY,
                self.head_dim,
                self.scores.softcap.is_some(),
                element(&self.query),
            );
        }
        (output, log_sum_exp)
    }

    /// The gradients of query, key and value.
    pub(super) fn backward(
        self,
        output: CubeTensor,
        log_sum_exp: CubeTensor,
        gradient: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let gradient = readable(gradient);
        let statistics = self.statistics(output, log_sum_exp, gradient.clone());
        let (d_query, d_both) = self
            .matrix_backward(&gradient, &statistics)
            .unwrap_or_else(|| self.plain_backward(gradient, statistics));
        let Self { batch, kv_heads, keys, head_dim, .. } = self;
        let half = |i: usize| {
            let ranges = [i..i + 1, 0..batch, 0..kv_heads, 0..keys, 0..head_dim];
            let mut half = slice(d_both.clone(), &ranges);
            half.meta.remove(0);
            half
        };
        (d_query, half(0), half(1))
    }

    /// The gradients of the query, and of key and value in one tensor `[2, batch, kv_heads, keys, head_dim]`.
    fn plain_backward(
        &self,
        gradient: CubeTensor,
        statistics: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let Self { batch, heads, kv_heads, queries, keys, head_dim, scores, .. } = *self;
        let d_query = self.rows_like(&self.query, heads, queries);
        // Both in one tensor: one binding less.
        let d_both = empty(&self.key, [2, batch, kv_heads, keys, head_dim], self.key.dtype());
        let (cap, capped) = (scores.softcap.unwrap_or(0.0), scores.softcap.is_some());
        let units = CubeDim::new_1d(UNITS as u32);
        let client = d_query.client.clone();
        let count = queries.div_ceil(TILE) * heads * batch;
        if count > 0 {
            backward::kernel::query_gradient::launch(
                &client,
                cubes(count),
                units,
                self.query.clone().into_tensor_arg(),
                self.key.clone().into_tensor_arg(),
                self.value.clone().into_tensor_arg(),
                gradient.clone().into_tensor_arg(),
                self.visible.clone().into_tensor_arg(),
                statistics.clone().into_tensor_arg(),
                d_query.clone().into_tensor_arg(),
                count,
                scores.scale,
                cap,
                head_dim,
                capped,
                element(&self.query),
            );
        }
        let count = keys.div_ceil(TILE) * kv_heads * batch;
        if count > 0 {
            backward::kernel::key_value_gradient::launch(
                &client,
                cubes(count),
                units,
                self.query.clone().into_tensor_arg(),
                self.key.clone().into_tensor_arg(),
                self.value.clone().into_tensor_arg(),
                gradient.into_tensor_arg(),
                self.visible.clone().into_tensor_arg(),
                statistics.into_tensor_arg(),
                d_both.clone().into_tensor_arg(),
                count,
                scores.scale,
                cap,
                head_dim,
                capped,
                element(&self.query),
            );
        }
        (d_query, d_both)
    }

    /// The log-sum-exp and `D = rowsum(dO * O)` of each query, `[batch, heads, queries, 2]`.
    fn statistics(
        &self,
        output: CubeTensor,
        log_sum_exp: CubeTensor,
        gradient: CubeTensor,
    ) -> CubeTensor {
        let output = readable(output);
        let shape = [self.batch, self.heads, self.queries, 2];
        let statistics = empty(&self.query, shape, DType::F32);
        let rows = self.batch * self.heads * self.queries;
        let (count, units) = elementwise(rows);
        let types = [element(&output), element(&gradient)];
        backward::kernel::statistics::launch(
            &statistics.client,
            count,
            units,
            output.into_tensor_arg(),
            gradient.into_tensor_arg(),
            into_contiguous(log_sum_exp).into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            rows,
            types,
        );
        statistics
    }

    /// A fresh tensor of shape `[batch, heads, seq, head_dim]`, laid out as the projections beside
    /// attention read it: `[batch, seq, heads, head_dim]`.
    fn rows_like(&self, like: &CubeTensor, heads: usize, seq: usize) -> CubeTensor {
        let mut tensor = empty(like, [self.batch, seq, heads, self.head_dim], like.dtype());
        tensor.meta.swap(1, 2);
        tensor
    }
}

/// The kernels read rows of any strides whose elements are side by side.
fn readable(tensor: CubeTensor) -> CubeTensor {
    if tensor.meta.strides()[3] == 1 { tensor } else { into_contiguous(tensor) }
}

/// First and end key of each query, clamped to the keys there are.
fn visible(first_key: CubeTensor, end_key: CubeTensor, keys: usize) -> CubeTensor {
    let [batch, queries] = first_key.shape().dims();
    let (first_key, end_key) = (into_contiguous(first_key), into_contiguous(end_key));
    let visible = empty(&first_key, [batch, queries, 2], DType::U32);
    let (count, units) = elementwise(batch * queries);
    let types = [element(&first_key), element(&end_key)];
    clamp_spans::launch(
        &visible.client,
        count,
        units,
        first_key.into_tensor_arg(),
        end_key.into_tensor_arg(),
        visible.clone().into_tensor_arg(),
        batch * queries,
        keys,
        types,
    );
    visible
}

#[cube(launch)]
fn clamp_spans<I: Int, J: Int>(
    first_key: &Tensor<I>,
    end_key: &Tensor<J>,
    visible: &mut Tensor<u32>,
    rows: usize,
    keys: usize,
    #[define(I, J)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS >= rows {
        terminate!();
    }
    // Clamped before it is narrowed.
    let first = clamp(first_key[ABSOLUTE_POS], I::new(0), I::cast_from(keys));
    let end = clamp(end_key[ABSOLUTE_POS], J::new(0), J::cast_from(keys));
    visible[2 * ABSOLUTE_POS] = u32::cast_from(first);
    visible[2 * ABSOLUTE_POS + 1] = u32::cast_from(end);
}
