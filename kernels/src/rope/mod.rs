//! Rotary position embedding (Su et al., 2021), in the half-split layout of Hugging Face checkpoints:
//! element `i` of a head is rotated with element `i + head_dim / 2`.

mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::autodiff::fused_op;
use crate::device::is_flex;

/// The dispatched form of [`rope`].
#[backend_extension(Autodiff, Flex)]
pub trait RopeOps: Backend {
    /// See [`rope`].
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl RopeOps for Flex {
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        flex::rotate(&x, &cos, &sin, 1.0)
    }
}

impl<C: CheckpointStrategy> RopeOps for Autodiff<Flex, C> {
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        fused_op::<Flex, _, C, _>(
            [x],
            |[x], keep| (flex::rotate(&x, &cos, &sin, 1.0), keep.then_some((cos, sin))),
            |(cos, sin), gradient, _| [Some(flex::rotate(&gradient, &cos, &sin, -1.0))],
        )
    }
}

/// Rotates each pair of elements by its angle; the backward rotates back. The tables get no gradient.
///
/// # Shapes
/// - `x`: `[batch, seq, heads, head_dim]`, `head_dim` even
/// - `cos`, `sin`: `[batch, seq, head_dim / 2]`, in f32
/// - result: as `x`
pub fn rope(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    if !is_flex(&x.device()) {
        return reference::rope(x, cos, sin);
    }
    Tensor::from_dispatch(<Dispatch as RopeOps>::fused_rope(
        x.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, noise};

    #[test]
    fn equals_the_reference_at_odd_sizes() {
        for [batch, seq, heads, head_dim] in [[1, 1, 1, 2], [2, 7, 3, 6], [1, 67, 2, 24]] {
            let shape = [batch, seq, heads, head_dim];
            let angles = noise([batch * seq * head_dim / 2], 3).reshape([batch, seq, head_dim / 2]);
            let (cos, sin) = (angles.clone().cos(), angles.sin());
            assert_same_gradients(
                [noise([batch * seq * heads * head_dim], 0)],
                |[x]| rope(x.reshape(shape), cos.clone(), sin.clone()),
                |[x]| reference::rope(x.reshape(shape), cos.clone(), sin.clone()),
                1e-6,
            );
        }
    }
}
