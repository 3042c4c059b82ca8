//! Token embedding: `y[t] = weight[id[t]]`, and the gradient `dweight[v] = sum over t with id[t] = v of dy[t]`.
//!
//! The gradient touches only the rows that were used, each once: the tokens of a row are found first, and
//! one task sums them in f32 in the order of the tokens. A scatter would add row by row into memory
//! that tasks share; here nothing is shared, so that the result has the same bits on every run.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Int, Tensor};

use crate::autodiff::{fused_op, untracked};

/// The dispatched form of [`embedding`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait EmbeddingOps: Backend {
    /// See [`embedding`].
    #[fusion(dtype = weight, shape = [ids[0], ids[1], weight[1]].into())]
    fn fused_embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of the weight, `[vocab, dim]`, from that of the output, `[batch, seq, dim]`.
    /// Not differentiable.
    #[fusion(dtype = gradient, shape = [*vocab, gradient[2]].into())]
    fn fused_embedding_backward(
        gradient: FloatTensor<Self>,
        ids: IntTensor<Self>,
        vocab: usize,
    ) -> FloatTensor<Self>;
}

impl EmbeddingOps for Flex {
    fn fused_embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        flex::forward(&weight, &ids)
    }

    fn fused_embedding_backward(
        gradient: FloatTensor<Self>,
        ids: IntTensor<Self>,
        vocab: usize,
    ) -> FloatTensor<Self> {
        flex::backward(&gradient, &ids, vocab)
    }
}

#[cfg(feature = "cube")]
impl EmbeddingOps for burn_cubecl::CubeBackend {
    fn fused_embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        cube::forward(weight, ids)
    }

    fn fused_embedding_backward(
        gradient: FloatTensor<Self>,
        ids: IntTensor<Self>,
        vocab: usize,
    ) -> FloatTensor<Self> {
        cube::backward(gradient, ids, vocab)
    }
}

impl<B: EmbeddingOps, C: CheckpointStrategy> EmbeddingOps for Autodiff<B, C> {
    fn fused_embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        fused_op::<B, _, C, _>(
            [weight],
            |[weight], keep| {
                let saved = keep.then(|| (ids.clone(), weight.shape()[0]));
                (B::fused_embedding(weight, ids), saved)
            },
            |(ids, vocab), gradient, _| [Some(B::fused_embedding_backward(gradient, ids, vocab))],
        )
    }

    fn fused_embedding_backward(
        gradient: FloatTensor<Self>,
        ids: IntTensor<Self>,
        vocab: usize,
    ) -> FloatTensor<Self> {
        let gradient = gradient.into_primitive();
        untracked::<B, C>(B::fused_embedding_backward(gradient, ids, vocab))
    }
}

/// The rows of `weight` that `ids` name. An id outside of `0..vocab` (the data loader lets none through)
/// gives zeros and has no part in the gradient.
///
/// # Shapes
/// - `weight`: `[vocab, dim]`
/// - `ids`: `[batch, seq]`
/// - result: `[batch, seq, dim]`, in the dtype of `weight`
pub fn embedding(weight: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as EmbeddingOps>::fused_embedding(
        weight.into_dispatch(),
        ids.into_dispatch(),
    ))
}
