//! Attention as an operation of every backend, and its registration with autodiff.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Flex, backend_extension};

use super::flex;
use crate::autodiff::{fused_op, untracked};

/// How scores come from queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Factor on the inner products, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Scores are squashed into `(-softcap, softcap)` by `softcap tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

impl Scores {
    /// `1 / sqrt(head_dim)`, no cap.
    pub fn scaled(head_dim: usize) -> Self {
        Self { scale: (head_dim as f32).powf(-0.5), softcap: None }
    }
}

/// The dispatched form of [`super::attention()`] and [`super::attention_backward`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait AttentionOps: Backend {
    /// The output and the log-sum-exp.
    #[fusion(meta = declare::forward)]
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of query, key and value. Not differentiable.
    #[fusion(meta = declare::backward)]
    fn fused_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        output: FloatTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Shapes and dtypes of the results, for Burn's fusion.
#[cfg(feature = "tuned")]
mod declare {
    use burn::backend::fusion::custom::TensorSpec;
    use burn::tensor::{DType, Shape};

    use super::Scores;

    pub(super) fn forward(
        query: &TensorSpec,
        _: &TensorSpec,
        _: &TensorSpec,
        _: &TensorSpec,
        _: &TensorSpec,
        _: &Scores,
    ) -> (TensorSpec, TensorSpec) {
        let rows = Shape::new([query.shape[0], query.shape[1], query.shape[2]]);
        (query.clone(), TensorSpec::new(rows, DType::F32))
    }

    pub(super) fn backward(
        query: &TensorSpec,
        key: &TensorSpec,
        value: &TensorSpec,
        _: &TensorSpec,
        _: &TensorSpec,
        _: &TensorSpec,
        _: &TensorSpec,
        _: &TensorSpec,
        _: &Scores,
    ) -> (TensorSpec, TensorSpec, TensorSpec) {
        (query.clone(), key.clone(), value.clone())
    }
}

impl AttentionOps for Flex {
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        flex::Problem::new(query, key, value, &first_key, &end_key, scores).forward()
    }

    fn fused_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        output: FloatTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        flex::Problem::new(query, key, value, &first_key, &end_key, scores).backward(
            &output,
            &log_sum_exp,
            &gradient,
        )
    }
}

#[cfg(feature = "cube")]
impl AttentionOps for burn_cubecl::CubeBackend {
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        super::cube::Problem::new(query, key, value, first_key, end_key, scores).forward()
    }

    fn fused_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        output: FloatTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        super::cube::Problem::new(query, key, value, first_key, end_key, scores).backward(
            output,
            log_sum_exp,
            gradient,
        )
    }
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let mut sums = None;
        let output = fused_op::<B, _, C, _>(
            [query, key, value],
            |[q, k, v], keep| {
                let mut saved = keep.then(|| {
                    let mask = (first_key.clone(), end_key.clone());
                    (q.clone(), k.clone(), v.clone(), mask, None, scores)
                });
                let (output, log_sum_exp) = B::fused_attention(q, k, v, first_key, end_key, scores);
                if let Some(saved) = &mut saved {
                    saved.4 = Some((output.clone(), log_sum_exp.clone()));
                }
                sums = Some(log_sum_exp);
                (output, saved)
            },
            |(q, k, v, (first_key, end_key), forward, scores), gradient, _| {
                let (output, log_sum_exp) = forward.expect("saved with the inputs");
                let (q, k, v) = B::fused_attention_backward(
                    q,
                    k,
                    v,
                    first_key,
                    end_key,
                    output,
                    log_sum_exp,
                    gradient,
                    scores,
                );
                [Some(q), Some(k), Some(v)]
            },
        );
        (output, untracked::<B, C>(sums.expect("the forward has run")))
    }

    fn fused_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        first_key: IntTensor<Self>,
        end_key: IntTensor<Self>,
        output: FloatTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let inner = |tensor: FloatTensor<Self>| <Self as AutodiffBackend>::inner(tensor);
        let (query, key, value) = B::fused_attention_backward(
            inner(query),
            inner(key),
            inner(value),
            first_key,
            end_key,
            inner(output),
            inner(log_sum_exp),
            inner(gradient),
            scores,
        );
        (untracked::<B, C>(query), untracked::<B, C>(key), untracked::<B, C>(value))
    }
}
