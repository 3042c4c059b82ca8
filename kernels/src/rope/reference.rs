//! RoPE by plain tensor operations.

use burn::tensor::Tensor;

use crate::wide::widened;

/// See [`super::rope`].
pub fn rope(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let dtype = x.dtype();
    let x = widened(x);
    let half = x.dims()[3] / 2;
    let [cos, sin] = [cos, sin].map(|table| table.cast(x.dtype()).unsqueeze_dim(2));
    let first = x.clone().narrow(3, 0, half);
    let second = x.narrow(3, half, half);
    Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ],
        3,
    )
    .cast(dtype)
}
