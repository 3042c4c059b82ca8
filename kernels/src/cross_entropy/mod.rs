//! The head's matrix product and the cross-entropy in one operation, over chunks of tokens.
//!
//! `loss = sum over tokens of (log sum exp(logits) - logits[target])`, `logits = hidden weight`. The
//! logits of all tokens are never held at once: each chunk's gradients are taken while its logits are
//! there (as in the Liger kernels, Hsu et al., 2024), since the loss is what a backward starts from.

mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Int, Tensor};

use crate::autodiff::fused_op;
use crate::device::is_flex;

/// A target that takes no part in the loss.
pub const IGNORE: i64 = -1;

/// The dispatched form of [`linear_cross_entropy`].
#[backend_extension(Autodiff, Flex)]
pub trait CrossEntropyOps: Backend {
    /// See [`linear_cross_entropy`].
    fn fused_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl CrossEntropyOps for Flex {
    fn fused_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        flex::forward(hidden, weight, &targets, false).0
    }
}

impl<C: CheckpointStrategy> CrossEntropyOps for Autodiff<Flex, C> {
    fn fused_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        fused_op::<Flex, _, C, _>(
            [hidden, weight],
            |[hidden, weight], keep| flex::forward(hidden, weight, &targets, keep),
            |gradients, scale, _| flex::scaled(gradients, scale).map(Some),
        )
    }
}

/// The summed cross-entropy, in nats, of `hidden weight` against `targets`.
///
/// # Shapes
/// - `hidden`: `[tokens, dim]`
/// - `weight`: `[dim, vocab]`
/// - `targets`: `[tokens]`, in `0..vocab`, or [`IGNORE`]
/// - result: `[1]`, in f32
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    if !is_flex(&hidden.device()) {
        return reference::linear_cross_entropy(hidden, weight, targets);
    }
    Tensor::from_dispatch(<Dispatch as CrossEntropyOps>::fused_linear_cross_entropy(
        hidden.into_dispatch(),
        weight.into_dispatch(),
        targets.into_dispatch(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, noise};
    use burn::tensor::Device;

    #[test]
    fn equals_the_reference_at_odd_sizes() {
        for [tokens, dim, vocab] in [[1, 1, 1], [3, 5, 7], [67, 24, 331], [600, 16, 33]] {
            let targets: Vec<i64> = (0..tokens as i64)
                .map(|i| if i % 5 == 3 { IGNORE } else { (i * 7919) % vocab as i64 })
                .collect();
            let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &Device::flex());
            assert_same_gradients(
                [noise([tokens * dim], 0) * 3.0, noise([dim * vocab], 1)],
                |[h, w]| {
                    let (h, w) = (h.reshape([tokens, dim]), w.reshape([dim, vocab]));
                    linear_cross_entropy(h, w, targets.clone())
                },
                |[h, w]| {
                    let (h, w) = (h.reshape([tokens, dim]), w.reshape([dim, vocab]));
                    reference::linear_cross_entropy(h, w, targets.clone())
                },
                3e-6,
            );
        }
    }
}
