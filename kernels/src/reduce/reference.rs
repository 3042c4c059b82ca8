//! The sum of chunks by plain tensor operations.

use burn::tensor::{DType, Tensor};

use crate::wide::widened;

/// See [`super::reduce_chunks`]; in f64 for f64 chunks.
pub fn reduce_chunks(chunks: Tensor<2>, scale: f32, dtype: DType) -> Tensor<1> {
    let length = chunks.dims()[1];
    (widened(chunks).sum_dim(0).reshape([length]) * scale).cast(dtype)
}
