//! The head's matrix product and the cross-entropy in one operation, over chunks of tokens and vocabulary.
//!
//! `loss = sum over tokens of (log sum exp(logits) - logits[target])`, `logits = hidden weight`. The
//! logits of all tokens are never held at once. The gradients are taken with the forward, since the
//! loss is what a backward starts from (as in the Liger kernels, Hsu et al., 2024):
//!
//! - where a chunk holds whole rows of logits, from the logits of the forward itself;
//! - where the vocabulary is cut as well, from logits that are computed again, since the log-sum-exp is
//!   known only after the last chunk of a row (as in Wijmans et al., 2025).

mod chunks;
#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;
mod vocabulary;

pub use vocabulary::{
    VocabularyOps, VocabularyStatistics, vocabulary_gradients, vocabulary_statistics,
};

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Int, Tensor};

use crate::autodiff::{fused_op, untracked};
use crate::flex::float_tensor;

/// A target that takes no part in the loss.
pub const IGNORE: i64 = -1;

/// Most elements of logits that [`linear_cross_entropy`] holds at once: 64 MiB in f32.
pub const CHUNK_ELEMENTS: usize = 1 << 24;

/// Most elements of logits that [`linear_cross_entropy`] of so many tokens really holds at once.
pub fn logits_held(tokens: usize, vocab: usize) -> usize {
    chunks::Chunks::new(tokens, vocab, CHUNK_ELEMENTS).elements()
}

/// The loss `[1]`, and the gradients of hidden states and weight for a gradient of 1.
type LossAndGradients<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

/// The dispatched form of [`linear_cross_entropy`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait CrossEntropyOps: Backend {
    /// See [`linear_cross_entropy`]. `budget` is the most elements of logits to hold at once; a chunk
    /// of one row and 256 columns is held even if that is more.
    #[fusion(dtype = burn::tensor::DType::F32, shape = burn::tensor::Shape::new([1]))]
    fn fused_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> FloatTensor<Self>;

    /// The same loss, and the gradients of `hidden` and `weight` for a gradient of 1. Not
    /// differentiable.
    #[fusion(meta = |hidden, weight, _, _| {
        use burn::tensor::{DType, Shape};
        let loss = burn::backend::fusion::custom::TensorSpec::new(Shape::new([1]), DType::F32);
        (loss, hidden.clone(), weight.clone())
    })]
    fn fused_linear_cross_entropy_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Those gradients times that of the loss, `[1]`. Not differentiable.
    #[fusion(meta = |d_hidden, d_weight, _| (d_hidden.clone(), d_weight.clone()))]
    fn fused_linear_cross_entropy_backward(
        d_hidden: FloatTensor<Self>,
        d_weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl CrossEntropyOps for Flex {
    fn fused_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> FloatTensor<Self> {
        flex::Slice::new(&hidden, weight, &targets, 0, budget).forward()
    }

    fn fused_linear_cross_entropy_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> LossAndGradients<Self> {
        let slice = flex::Slice::new(&hidden, weight.clone(), &targets, 0, budget);
        let (loss, [d_hidden, d_weight]) = slice.forward_and_gradients();
        let d_hidden = float_tensor(d_hidden, hidden.shape(), hidden.dtype());
        (loss, d_hidden, float_tensor(d_weight, weight.shape(), weight.dtype()))
    }

    fn fused_linear_cross_entropy_backward(
        d_hidden: FloatTensor<Self>,
        d_weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        (flex::scaled(d_hidden, &gradient), flex::scaled(d_weight, &gradient))
    }
}

#[cfg(feature = "cube")]
impl CrossEntropyOps for burn_cubecl::CubeBackend {
    fn fused_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> FloatTensor<Self> {
        cube::Slice::new(hidden, weight, targets, 0, budget).forward()
    }

    fn fused_linear_cross_entropy_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> LossAndGradients<Self> {
        cube::Slice::new(hidden, weight, targets, 0, budget).forward_and_gradients()
    }

    fn fused_linear_cross_entropy_backward(
        d_hidden: FloatTensor<Self>,
        d_weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        (cube::scaled(d_hidden, gradient.clone()), cube::scaled(d_weight, gradient))
    }
}

impl<B: CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn fused_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> FloatTensor<Self> {
        fused_op::<B, _, C, _>(
            [hidden, weight],
            |[hidden, weight], keep| {
                if !keep {
                    return (B::fused_linear_cross_entropy(hidden, weight, targets, budget), None);
                }
                let (loss, d_hidden, d_weight) =
                    B::fused_linear_cross_entropy_gradients(hidden, weight, targets, budget);
                (loss, Some((d_hidden, d_weight)))
            },
            |(d_hidden, d_weight), gradient, _| {
                let (d_hidden, d_weight) =
                    B::fused_linear_cross_entropy_backward(d_hidden, d_weight, gradient);
                [Some(d_hidden), Some(d_weight)]
            },
        )
    }

    fn fused_linear_cross_entropy_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        budget: usize,
    ) -> LossAndGradients<Self> {
        let [hidden, weight] = [hidden, weight].map(|t| t.into_primitive());
        let (loss, d_hidden, d_weight) =
            B::fused_linear_cross_entropy_gradients(hidden, weight, targets, budget);
        (untracked::<B, C>(loss), untracked::<B, C>(d_hidden), untracked::<B, C>(d_weight))
    }

    fn fused_linear_cross_entropy_backward(
        d_hidden: FloatTensor<Self>,
        d_weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [d_hidden, d_weight, gradient] =
            [d_hidden, d_weight, gradient].map(|t| t.into_primitive());
        let (d_hidden, d_weight) =
            B::fused_linear_cross_entropy_backward(d_hidden, d_weight, gradient);
        (untracked::<B, C>(d_hidden), untracked::<B, C>(d_weight))
    }
}

/// The summed cross-entropy, in nats, of `hidden weight` against `targets`.
///
/// At most [`CHUNK_ELEMENTS`] logits are held at once.
///
/// # Shapes
/// - `hidden`: `[tokens, dim]`
/// - `weight`: `[dim, vocab]`
/// - `targets`: `[tokens]`, in `0..vocab`, or [`IGNORE`]
/// - result: `[1]`, in f32
///
/// # Panics
/// If the shapes do not fit together, and on flex if a target is not below `vocab` (other devices do not
/// read it back: the data loader must have checked it).
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    vocabulary::assert_shapes(&hidden, &weight, &targets);
    Tensor::from_dispatch(<Dispatch as CrossEntropyOps>::fused_linear_cross_entropy(
        hidden.into_dispatch(),
        weight.into_dispatch(),
        targets.into_dispatch(),
        CHUNK_ELEMENTS,
    ))
}
