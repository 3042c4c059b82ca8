//! SwiGLU's gate: `y = silu(gate) * up`, `silu(x) = x / (1 + e^-x)` (Shazeer, 2020).

mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::autodiff::fused_op;
use crate::device::is_flex;

/// The dispatched form of [`swiglu`].
#[backend_extension(Autodiff, Flex)]
pub trait SwigluOps: Backend {
    /// See [`swiglu`].
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SwigluOps for Flex {
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        flex::forward(&gate, &up)
    }
}

impl<C: CheckpointStrategy> SwigluOps for Autodiff<Flex, C> {
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        fused_op::<Flex, _, C, _>(
            [gate, up],
            |[gate, up], keep| (flex::forward(&gate, &up), keep.then_some((gate, up))),
            |(gate, up), gradient, _| flex::backward(&gate, &up, &gradient).map(Some),
        )
    }
}

/// `silu(gate) * up`, elementwise; `gate`, `up` and the result have one shape and dtype.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    if !is_flex(&gate.device()) {
        return reference::swiglu(gate, up);
    }
    Tensor::from_dispatch(<Dispatch as SwigluOps>::fused_swiglu(
        gate.into_dispatch(),
        up.into_dispatch(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, noise};

    #[test]
    fn equals_the_reference_at_odd_sizes() {
        for n in [1, 17, 5000] {
            assert_same_gradients(
                [noise([n], 0) * 4.0, noise([n], 1)],
                |[gate, up]| swiglu(gate, up),
                |[gate, up]| reference::swiglu(gate, up),
                2e-6,
            );
        }
    }
}
