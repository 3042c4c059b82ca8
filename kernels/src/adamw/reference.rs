//! AdamW by plain tensor operations.

use burn::tensor::Tensor;

use super::AdamwStep;

/// See [`super::adamw`].
pub fn adamw(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    s: AdamwStep,
) -> [Tensor<1>; 3] {
    let gradient = gradient * s.gradient_scale;
    let first = first_moment * s.beta1 + gradient.clone() * (1.0 - s.beta1);
    let second = second_moment * s.beta2 + gradient.square() * (1.0 - s.beta2);
    let corrected_first = first.clone() / (1.0 - s.beta1.powf(s.step as f64));
    let corrected_second = second.clone() / (1.0 - s.beta2.powf(s.step as f64));
    let update = corrected_first / (corrected_second.sqrt() + s.eps);
    let parameter = parameter * (1.0 - s.lr * s.weight_decay) - update * s.lr;
    [parameter, first, second]
}
