//! AdamW in one pass over parameter, gradient and both moments (Loshchilov and Hutter, 2019).
//!
//! With `g = gradient_scale * gradient`, at step `t` from 1:
//! `p *= 1 - lr weight_decay`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
//! `p -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)`.

mod flex;
pub mod reference;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::device::is_flex;

/// The numbers of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The step's number, from 1, for the bias correction.
    pub step: u64,
    /// Factor on the gradient, as clipping gives it.
    pub gradient_scale: f64,
}

/// The dispatched form of [`adamw`].
#[backend_extension(Flex)]
pub trait AdamwOps: Backend {
    /// See [`adamw`].
    fn fused_adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl AdamwOps for Flex {
    fn fused_adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        flex::adamw(parameter, &gradient, first_moment, second_moment, step)
    }
}

/// One AdamW step; returns the new parameter, first moment and second moment. All are f32 `[n]` and
/// not tracked. On flex a tensor that is given up (not cloned elsewhere) is updated in place.
pub fn adamw(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    step: AdamwStep,
) -> [Tensor<1>; 3] {
    if !is_flex(&parameter.device()) {
        return reference::adamw(parameter, gradient, first_moment, second_moment, step);
    }
    let (parameter, first, second) = <Dispatch as AdamwOps>::fused_adamw(
        parameter.into_dispatch(),
        gradient.into_dispatch(),
        first_moment.into_dispatch(),
        second_moment.into_dispatch(),
        step,
    );
    [parameter, first, second].map(Tensor::from_dispatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{distance, noise, values};

    #[test]
    fn equals_the_reference_at_odd_sizes() {
        let step = |t| AdamwStep {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step: t,
            gradient_scale: 0.7,
        };
        for n in [0, 1, 17, 70_001] {
            let zero = || noise([n], 0) * 0.0;
            let mut got = [noise([n], 1), zero(), zero()];
            let mut want = got.clone();
            for t in 1..=5 {
                let gradient = noise([n], 10 + t);
                let [p, m, v] = got;
                got = adamw(p, gradient.clone(), m, v, step(t));
                let [p, m, v] = want;
                want = reference::adamw(p, gradient, m, v, step(t));
            }
            for (got, want) in got.into_iter().zip(want) {
                assert!(distance(&values(got), &values(want)) < 1e-6);
            }
        }
    }
}
