//! RMSNorm by plain tensor operations.

use burn::tensor::Tensor;

use crate::wide::widened;

/// See [`super::rms_norm`].
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f32) -> Tensor<D> {
    let dtype = x.dtype();
    let (x, weight) = (widened(x), widened(weight));
    let scale = (x.clone().square().mean_dim(D - 1) + eps).sqrt().recip();
    (x * scale * weight.unsqueeze()).cast(dtype)
}
