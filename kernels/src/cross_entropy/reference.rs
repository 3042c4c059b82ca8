//! Linear and cross-entropy by plain tensor operations; holds all logits.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

use crate::wide::widened;

/// See [`super::linear_cross_entropy`].
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    let log_probabilities = log_softmax(widened(hidden.matmul(weight)), 1);
    let counted = targets.clone().greater_equal_elem(0).float().cast(log_probabilities.dtype());
    let picked = log_probabilities.gather(1, targets.clamp_min(0).unsqueeze_dim(1)).squeeze_dim(1);
    -(picked * counted).sum()
}
