//! Root-mean-square normalisation: `y = weight * x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich, 2019).

mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::autodiff::native_op;
use crate::device::is_flex;

/// The dispatched form of [`rms_norm`].
#[backend_extension(Autodiff, Flex)]
pub trait RmsNormOps: Backend {
    /// See [`rms_norm`].
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
}

impl RmsNormOps for Flex {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        flex::forward(&x, &weight, eps)
    }
}

impl<C: CheckpointStrategy> RmsNormOps for Autodiff<Flex, C> {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        native_op::<_, C, _>(
            [x, weight],
            |[x, weight], keep| {
                let y = flex::forward(&x, &weight, eps);
                (y, keep.then_some((x, weight, eps)))
            },
            |(x, weight, eps), gradient, _| flex::backward(&x, &weight, eps, &gradient).map(Some),
        )
    }
}

/// Root-mean-square normalisation over the last dim.
///
/// # Shapes
/// - `x`: `[.., dim]`
/// - `weight`: `[dim]`
/// - result: `[.., dim]`, in the dtype of `x`; the mean is in f32 for every dtype
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f32) -> Tensor<D> {
    if !is_flex(&x.device()) {
        return reference::rms_norm(x, weight, eps);
    }
    Tensor::from_dispatch(<Dispatch as RmsNormOps>::fused_rms_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        eps,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, noise};

    #[test]
    fn equals_the_reference_at_odd_sizes() {
        for shape in [[1, 1, 1], [2, 3, 16], [1, 67, 37], [3, 50, 64]] {
            let weight = noise([shape[2]], 1) + 1.0;
            assert_same_gradients(
                [noise(shape, 0).reshape([-1]), weight],
                |[x, w]| rms_norm(x.reshape(shape), w, 1e-5),
                |[x, w]| reference::rms_norm(x.reshape(shape), w, 1e-5),
                2e-6,
            );
        }
    }
}
