//! The loss over a vocabulary that is cut into slices, one on each rank.
//!
//! A rank knows the columns of the weight for the words `first..first + slice`. Its logits give a log-sum-exp and,
//! for the tokens whose target it has, a target logit. The log-sum-exp of those of all slices is that of the whole
//! vocabulary, and the sum of the target logits is the target logit: with these every rank has the loss, and its
//! part of the gradients (`e^(logits - log_sum_exp)`, less 1 at the target).

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor};

#[cfg(feature = "cube")]
use super::cube;
use super::{CHUNK_ELEMENTS, flex};
use crate::autodiff::untracked;
#[cfg(feature = "cube")]
use crate::cube::into_contiguous;
use crate::flex::{F32View, float_tensor};

/// The dispatched forms of [`vocabulary_statistics`] and [`vocabulary_gradients`]; `budget` is the most elements of
/// logits to hold at once, as in [`CrossEntropyOps`](super::CrossEntropyOps). Not differentiable.
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait VocabularyOps: Backend {
    /// Log-sum-exp and target logit of each token.
    #[fusion(meta = |hidden, _, _, _, _| {
        use burn::backend::fusion::custom::TensorSpec;
        let tokens = TensorSpec::new(Shape::new([hidden.shape[0]]), DType::F32);
        (tokens.clone(), tokens)
    })]
    fn fused_vocabulary_statistics(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of `hidden` and `weight`.
    #[fusion(meta = |hidden, weight, _, _, _, _, _| (hidden.clone(), weight.clone()))]
    fn fused_vocabulary_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl VocabularyOps for Flex {
    fn fused_vocabulary_statistics(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let rows = flex::Slice::new(&hidden, weight, &targets, first, budget).statistics();
        let tokens = |value: fn(&flex::RowStatistics) -> f32| {
            float_tensor(rows.iter().map(value).collect(), Shape::new([rows.len()]), DType::F32)
        };
        (tokens(|row| row.log_sum_exp), tokens(|row| row.target_logit))
    }

    fn fused_vocabulary_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let slice = flex::Slice::new(&hidden, weight.clone(), &targets, first, budget);
        let log_sum_exp = F32View::new(&log_sum_exp);
        let [d_hidden, d_weight] = slice.gradients(|token| log_sum_exp[token]);
        let d_hidden = float_tensor(d_hidden, hidden.shape(), hidden.dtype());
        let d_weight = float_tensor(d_weight, weight.shape(), weight.dtype());
        (flex::scaled(d_hidden, &gradient), flex::scaled(d_weight, &gradient))
    }
}

#[cfg(feature = "cube")]
impl VocabularyOps for burn_cubecl::CubeBackend {
    fn fused_vocabulary_statistics(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let rows = cube::Slice::new(hidden, weight, targets, first, budget).statistics();
        (rows.log_sum_exp, rows.target_logit)
    }

    fn fused_vocabulary_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let slice = cube::Slice::new(hidden, weight, targets, first, budget);
        let (d_hidden, d_weight) = slice.gradients(&into_contiguous(log_sum_exp));
        (cube::scaled(d_hidden, gradient.clone()), cube::scaled(d_weight, gradient))
    }
}

impl<B: VocabularyOps, C: CheckpointStrategy> VocabularyOps for Autodiff<B, C> {
    fn fused_vocabulary_statistics(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [hidden, weight] = [hidden, weight].map(|t| t.into_primitive());
        let (log_sum_exp, target_logit) =
            B::fused_vocabulary_statistics(hidden, weight, targets, first, budget);
        (untracked::<B, C>(log_sum_exp), untracked::<B, C>(target_logit))
    }

    fn fused_vocabulary_gradients(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        log_sum_exp: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: usize,
        budget: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [hidden, weight, log_sum_exp, gradient] =
            [hidden, weight, log_sum_exp, gradient].map(|t| t.into_primitive());
        let (d_hidden, d_weight) = B::fused_vocabulary_gradients(
            hidden,
            weight,
            targets,
            log_sum_exp,
            gradient,
            first,
            budget,
        );
        (untracked::<B, C>(d_hidden), untracked::<B, C>(d_weight))
    }
}

/// What a slice of the vocabulary says about each token.
#[derive(Debug, Clone)]
pub struct VocabularyStatistics {
    /// The log-sum-exp of the token's logits in the slice, `[tokens]` in f32; negative infinity for a slice of no
    /// words.
    pub log_sum_exp: Tensor<1>,
    /// The logit of the token's target, 0 where the slice has it not, `[tokens]` in f32.
    pub target_logit: Tensor<1>,
}

/// The statistics of the logits `hidden weight`, of which at most [`CHUNK_ELEMENTS`] are held at once. Not
/// differentiable: see [`vocabulary_gradients`].
///
/// # Shapes
/// - `hidden`: `[tokens, dim]`
/// - `weight`: `[dim, slice]`, for the words from `first` on
/// - `targets`: `[tokens]`, words of the whole vocabulary, or [`IGNORE`](super::IGNORE)
///
/// # Panics
/// If the shapes do not fit together.
pub fn vocabulary_statistics(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    first: usize,
) -> VocabularyStatistics {
    assert_shapes(&hidden, &weight, &targets);
    let (log_sum_exp, target_logit) = <Dispatch as VocabularyOps>::fused_vocabulary_statistics(
        hidden.into_dispatch(),
        weight.into_dispatch(),
        targets.into_dispatch(),
        first,
        CHUNK_ELEMENTS,
    );
    VocabularyStatistics {
        log_sum_exp: Tensor::from_dispatch(log_sum_exp),
        target_logit: Tensor::from_dispatch(target_logit),
    }
}

/// The gradients of the summed cross-entropy: of `hidden` as far as it comes from this slice of the vocabulary (the
/// sum over slices is the whole one), and of the slice of the weight. The logits are computed again, at most
/// [`CHUNK_ELEMENTS`] at once.
///
/// # Shapes
/// - `hidden`, `weight`, `targets`, `first`: as in [`vocabulary_statistics`]
/// - `log_sum_exp`: `[tokens]` in f32, of the whole vocabulary
/// - `gradient`: `[1]` in f32, that of the loss
/// - result: as `hidden` and `weight`, shapes and dtypes
///
/// # Panics
/// If the shapes do not fit together.
pub fn vocabulary_gradients(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    first: usize,
    log_sum_exp: Tensor<1>,
    gradient: Tensor<1>,
) -> [Tensor<2>; 2] {
    assert_shapes(&hidden, &weight, &targets);
    assert_eq!(log_sum_exp.dims(), targets.dims(), "a log-sum-exp for each token");
    assert_eq!(gradient.dims(), [1], "the loss is one number");
    let (d_hidden, d_weight) = <Dispatch as VocabularyOps>::fused_vocabulary_gradients(
        hidden.into_dispatch(),
        weight.into_dispatch(),
        targets.into_dispatch(),
        log_sum_exp.into_dispatch(),
        gradient.into_dispatch(),
        first,
        CHUNK_ELEMENTS,
    );
    [Tensor::from_dispatch(d_hidden), Tensor::from_dispatch(d_weight)]
}

pub(super) fn assert_shapes(hidden: &Tensor<2>, weight: &Tensor<2>, targets: &Tensor<1, Int>) {
    let ([tokens, dim], [rows, _]) = (hidden.dims(), weight.dims());
    assert_eq!(dim, rows, "hidden states and weight meet in `dim`");
    assert_eq!(targets.dims(), [tokens], "a target for each token");
}
