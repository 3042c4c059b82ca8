//! Attention by plain tensor operations: what the kernels are checked against, and what runs where no
//! kernel does. Holds `[batch, heads, seq, seq]` scores.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Int, Tensor};

/// See [`super::attention`].
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    first_key: Tensor<2, Int>,
    scale: f32,
) -> Tensor<4> {
    let [_, heads, _, _] = query.dims();
    let [_, kv_heads, _, _] = key.dims();
    let dtype = query.dtype();
    let (key, value) = (repeat_heads(key, heads / kv_heads), repeat_heads(value, heads / kv_heads));
    let scores = query.matmul(key.swap_dims(2, 3)).cast(DType::F32) * scale;
    let scores = scores.mask_fill(hidden(first_key), f32::MIN / 2.0);
    softmax(scores, 3).cast(dtype).matmul(value)
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

/// `[batch, 1, seq, seq]`: true where query (dim 2) must not see key (dim 3).
fn hidden(first_key: Tensor<2, Int>) -> Tensor<4, Bool> {
    let [batch, seq] = first_key.dims();
    let index = Tensor::<1, Int>::arange(0..seq as i64, &first_key.device());
    let key = index.clone().reshape([1, 1, 1, seq]).expand([batch, 1, seq, seq]);
    let query = index.reshape([1, 1, seq, 1]).expand([batch, 1, seq, seq]);
    let first = first_key.reshape([batch, 1, seq, 1]).expand([batch, 1, seq, seq]);
    key.clone().greater(query).bool_or(key.lower(first))
}
