//! The dtype that sums are taken in.

use burn::tensor::{DType, Tensor};

/// The tensor in f32, or in f64 if it is f64 (as the tests' references are).
pub(crate) fn widened<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F64 { x } else { x.cast(DType::F32) }
}
