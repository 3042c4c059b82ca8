//! Block quantisation by plain tensor operations, for finite values whose blocks have a normal scale or
//! are all zeros.

use burn::tensor::Tensor;

use crate::wide::widened;

/// The whole numbers, `[blocks, block]`, and the scales, `[blocks, 1]`; in f64 for an f64 tensor.
pub fn quantize(x: Tensor<1>, block: usize) -> (Tensor<2>, Tensor<2>) {
    let x = widened(x);
    let length = x.dims()[0];
    let blocks = length.div_ceil(block);
    let padding = Tensor::zeros([blocks * block - length], (&x.device(), x.dtype()));
    let x = Tensor::cat(vec![x, padding], 0).reshape([blocks, block]);
    let scales = x.clone().abs().max_dim(1) / 127.0;
    let safe = scales.clone().mask_fill(scales.clone().equal_elem(0.0), 1.0);
    ((x / safe).round(), scales)
}

/// The values that [`quantize`] gives, `[length]`.
pub fn dequantize(numbers: Tensor<2>, scales: Tensor<2>, length: usize) -> Tensor<1> {
    let n = numbers.dims().iter().product::<usize>();
    (numbers * scales).reshape([n]).slice(0..length)
}
