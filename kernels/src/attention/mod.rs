//! Exact attention that never holds a `seq x seq` array.
//!
//! `S = scale Q K^T`, or `softcap tanh(S / softcap)` of it; `P = softmax(S)` over the keys that a query
//! sees; `O = P V` (Vaswani et al., 2017). Tiles, online softmax and the recomputing backward are those
//! of FlashAttention (Dao et al., 2022; Dao, 2023); the soft cap is Gemma 2's (2024). With
//! `L = log sum exp(S)` and `D = rowsum(dO * O)`:
//!
//! `P = exp(S - L)`, `dV = P^T dO`, `dS = P * (dO V^T - D) * dcap`, `dQ = scale dS K`,
//! `dK = scale dS^T Q`, where `dcap = 1 - (S / softcap)^2`, or 1 without a cap.
//!
//! The log-sum-exp is returned too: partial results over different keys are merged by it, as ring
//! attention does (Liu et al., 2023).

#[cfg(feature = "cube")]
mod cube;
mod flex;
mod mask;
mod ops;
pub mod reference;

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

#[cfg(feature = "cube")]
pub use cube::{Tier, with_tier};
pub use flex::working_elements;
pub use mask::AttentionMask;
pub use ops::{AttentionOps, Scores};

/// Largest `head_dim` on CubeCL devices, where a unit's registers hold a share of each row.
pub const MAX_HEAD_DIM: usize = 256;

/// What [`attention`] returns.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[batch, heads, queries, head_dim]`, in the dtype of the query. Zero where a query sees no key.
    pub output: Tensor<4>,
    /// The log-sum-exp of each query's scores, `[batch, heads, queries]` in f32; minus infinity where a
    /// query sees no key. Not tracked by autodiff.
    pub log_sum_exp: Tensor<3>,
}

/// Attention of queries over the keys that `mask` lets them see.
///
/// # Shapes
/// - `query`: `[batch, heads, queries, head_dim]`
/// - `key`, `value`: `[batch, kv_heads, keys, head_dim]`, `heads` a multiple of `kv_heads`; query head
///   `h` meets key head `h / (heads / kv_heads)`
/// - `mask`: for `[batch, queries]`
///
/// Inputs are f32, f16 or bf16, all of one dtype and of any strides; sums are in f32. Where a device has
/// matrix units for f16 or bf16, `P` and `dS` are rounded to it on their way. Memory beyond inputs and
/// outputs is `O(seq)`. The gradients are summed in a fixed order.
///
/// # Panics
/// If the shapes do not fit together, or a CubeCL device is given a `head_dim` over [`MAX_HEAD_DIM`].
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: &AttentionMask,
    scores: Scores,
) -> Attention {
    mask.assert_fits(&query, &key, &value);
    let (output, log_sum_exp) = <Dispatch as AttentionOps>::fused_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        mask.first_key().into_dispatch(),
        mask.end_key().into_dispatch(),
        scores,
    );
    let log_sum_exp = Tensor::<3>::from_dispatch(log_sum_exp);
    Attention { output: Tensor::from_dispatch(output), log_sum_exp: log_sum_exp.inner() }
}

/// The gradients of query, key and value, in this order, from the gradient of the output.
///
/// `attention` is what the forward returned; its output and log-sum-exp may come from a merge over more keys
/// than `key` holds, and the result is then this part's share of the gradients. Shapes as for
/// [`attention()`]; output and gradient are of the query's dtype; nothing is tracked.
///
/// # Panics
/// If shapes or dtypes do not fit together.
pub fn attention_backward(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: &AttentionMask,
    scores: Scores,
    attention: Attention,
    gradient: Tensor<4>,
) -> [Tensor<4>; 3] {
    mask.assert_fits(&query, &key, &value);
    let Attention { output, log_sum_exp } = attention;
    let [batch, heads, queries, _] = query.dims();
    assert_eq!([output.dims(), gradient.dims()], [query.dims(); 2], "output and its gradient");
    assert_eq!([output.dtype(), gradient.dtype()], [query.dtype(); 2], "output and its gradient");
    assert_eq!(log_sum_exp.dims(), [batch, heads, queries], "the log-sum-exp");
    assert_eq!(log_sum_exp.dtype(), DType::F32, "the log-sum-exp");
    let (query, key, value) = <Dispatch as AttentionOps>::fused_attention_backward(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        mask.first_key().into_dispatch(),
        mask.end_key().into_dispatch(),
        output.into_dispatch(),
        log_sum_exp.into_dispatch(),
        gradient.into_dispatch(),
        scores,
    );
    [query, key, value].map(Tensor::from_dispatch)
}
