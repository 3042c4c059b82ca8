//! Attention by plain tensor operations: what the kernels are checked against. Holds
//! `[batch, heads, queries, keys]` scores.

use burn::tensor::{Bool, Int, Tensor};

use super::{Attention, AttentionMask, Scores};
use crate::wide::widened;

/// See [`super::attention()`]. In f64, if the inputs are; the log-sum-exp too.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: &AttentionMask,
    scores: Scores,
) -> Attention {
    let [_, heads, _, _] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    let dtype = query.dtype();
    let repeated = |x: Tensor<4>| repeat_heads(widened(x), heads / kv_heads);
    let (key, value) = (repeated(key), repeated(value));
    let mut s = widened(query).matmul(key.swap_dims(2, 3)) * scores.scale;
    if let Some(cap) = scores.softcap {
        s = (s / cap).tanh() * cap;
    }
    let hidden = hidden(mask, keys);
    // A finite stand-in for minus infinity, so that no gradient is NaN where a query sees nothing.
    let s = s.mask_fill(hidden.clone(), -1e30);
    let top = s.clone().detach().max_dim(3);
    let p = (s - top.clone()).exp().mask_fill(hidden, 0.0);
    let sum = p.clone().sum_dim(3);
    let empty = sum.clone().lower_equal_elem(0.0);
    let output = (p / sum.clone().mask_fill(empty.clone(), 1.0)).matmul(value).cast(dtype);
    let log_sum_exp = (top + sum.log()).mask_fill(empty, f32::NEG_INFINITY);
    Attention { output, log_sum_exp: log_sum_exp.squeeze_dim::<3>(3).inner() }
}

/// `[batch, kv_heads, seq, head_dim]` to `[batch, kv_heads * times, seq, head_dim]`, each head `times`
/// times in a row.
fn repeat_heads(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times == 1 {
        return x;
    }
    let [batch, kv_heads, seq, head_dim] = x.dims();
    x.reshape([batch, kv_heads, 1, seq, head_dim]).repeat_dim(2, times).reshape([
        batch,
        kv_heads * times,
        seq,
        head_dim,
    ])
}

/// `[batch, 1, queries, keys]`: true where a query must not see a key.
fn hidden(mask: &AttentionMask, keys: usize) -> Tensor<4, Bool> {
    let [batch, queries] = mask.first_key().dims();
    let shape = [batch, 1, queries, keys];
    let column = |x: Tensor<2, Int>| x.reshape([batch, 1, queries, 1]).expand(shape);
    let (first, end) = (column(mask.first_key()), column(mask.end_key()));
    let key = Tensor::<1, Int>::arange(0..keys as i64, &first.device());
    let key = key.cast(first.dtype()).reshape([1, 1, 1, keys]).expand(shape);
    key.clone().lower(first).bool_or(key.greater_equal(end))
}
