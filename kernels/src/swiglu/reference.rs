//! SwiGLU by plain tensor operations.

use burn::tensor::Tensor;
use burn::tensor::activation::silu;

/// See [`super::swiglu`].
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}
