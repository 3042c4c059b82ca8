//! Root-mean-square normalisation: `y = weight * x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich, 2019).

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::autodiff::{fused_op, untracked};

/// The dispatched form of [`rms_norm`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait RmsNormOps: Backend {
    /// See [`rms_norm`].
    #[fusion(dtype = x, shape = x)]
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;

    /// The gradients of `x` and `weight` from that of the output. Not differentiable.
    #[fusion(meta = |x, weight, _, _| (x.clone(), weight.clone()))]
    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl RmsNormOps for Flex {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        flex::forward(&x, &weight, eps)
    }

    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        flex::backward(&x, &weight, eps, &gradient)
    }
}

#[cfg(feature = "cube")]
impl RmsNormOps for burn_cubecl::CubeBackend {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        cube::forward(x, weight, eps)
    }

    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube::backward(x, weight, eps, gradient)
    }
}

impl<B: RmsNormOps, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        fused_op::<B, _, C, _>(
            [x, weight],
            |[x, weight], keep| {
                let saved = keep.then(|| (x.clone(), weight.clone(), eps));
                (B::fused_rms_norm(x, weight, eps), saved)
            },
            |(x, weight, eps), gradient, _| {
                let (dx, d_weight) = B::fused_rms_norm_backward(x, weight, eps, gradient);
                [Some(dx), Some(d_weight)]
            },
        )
    }

    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, weight, gradient] = [x, weight, gradient].map(|t| t.into_primitive());
        let (dx, d_weight) = B::fused_rms_norm_backward(x, weight, eps, gradient);
        (untracked::<B, C>(dx), untracked::<B, C>(d_weight))
    }
}

/// Root-mean-square normalisation over the last dim.
///
/// # Shapes
/// - `x`: `[.., dim]`
/// - `weight`: `[dim]`
/// - result: `[.., dim]`, in the dtype of `x`; the mean is in f32 for every dtype
///
/// # Panics
/// If the shapes do not fit together.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f32) -> Tensor<D> {
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "a weight for each element of a row");
    Tensor::from_dispatch(<Dispatch as RmsNormOps>::fused_rms_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        eps,
    ))
}
