//! The sum of squares by plain tensor operations.

use burn::tensor::Tensor;

use crate::wide::widened;

/// See [`super::sum_of_squares`]; in f64 for an f64 tensor.
pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    widened(x).square().sum()
}
