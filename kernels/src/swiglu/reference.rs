//! SwiGLU by plain tensor operations.

use burn::tensor::Tensor;
use burn::tensor::activation::silu;

use crate::wide::widened;

/// See [`super::swiglu`].
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let dtype = gate.dtype();
    (silu(widened(gate)) * widened(up)).cast(dtype)
}
