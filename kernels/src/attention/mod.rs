//! Causal attention with grouped key and value heads and packed documents.
//!
//! `O = softmax(scale Q K^T + mask) V`, one softmax a query row. Query `i` of a row sees the keys
//! `first_key[i]..=i`: with `first_key[i]` the start of its document, attention is block-causal by
//! document (Vaswani et al., 2017; tiles and backward after Dao et al., 2022).
//!
//! On flex the native kernel of `flex.rs` runs, which never holds a `seq x seq` array; elsewhere the
//! plain-tensor [`mod@reference`], which does.

mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Int, Tensor};

use crate::autodiff::fused_op;
use crate::device::is_flex;

/// The dispatched form of [`attention`].
#[backend_extension(Autodiff, Flex)]
pub trait AttentionOps: Backend {
    /// See [`attention`].
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
}

impl AttentionOps for Flex {
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        flex::Problem::new(query, key, value, first_key, scale).forward().0
    }
}

impl<C: CheckpointStrategy> AttentionOps for Autodiff<Flex, C> {
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        fused_op::<Flex, _, C, _>(
            [query, key, value],
            |[query, key, value], keep| {
                let problem = flex::Problem::new(query, key, value, first_key, scale);
                let (output, log_sum_exp) = problem.forward();
                let saved = keep.then(|| (problem, output.clone(), log_sum_exp));
                (output, saved)
            },
            |(problem, output, log_sum_exp), gradient, _| {
                problem.backward(output, &log_sum_exp, gradient).map(Some)
            },
        )
    }
}

/// Causal attention.
///
/// # Shapes
/// - `query`: `[batch, heads, seq, head_dim]`
/// - `key`, `value`: `[batch, kv_heads, seq, head_dim]`, `heads` a multiple of `kv_heads`; query head
///   `h` meets key head `h / (heads / kv_heads)`
/// - `first_key`: `[batch, seq]`, at most the query's own position
/// - result: `[batch, heads, seq, head_dim]`
///
/// `scale` multiplies the scores, usually `1 / sqrt(head_dim)`. Sums are in f32 for every dtype.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    first_key: Tensor<2, Int>,
    scale: f32,
) -> Tensor<4> {
    if !is_flex(&query.device()) {
        return reference::attention(query, key, value, first_key, scale);
    }
    Tensor::from_dispatch(<Dispatch as AttentionOps>::fused_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        first_key.into_dispatch(),
        scale,
    ))
}

#[cfg(test)]
mod tests;
