//! SwiGLU's gate: `y = silu(gate) * up`, `silu(x) = x / (1 + e^-x)` (Shazeer, 2020).

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::autodiff::{fused_op, untracked};

/// The dispatched form of [`swiglu`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait SwigluOps: Backend {
    /// See [`swiglu`].
    #[fusion(dtype = gate, shape = gate)]
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradients of `gate` and `up` from that of the output. Not differentiable.
    #[fusion(meta = |gate, up, _| (gate.clone(), up.clone()))]
    fn fused_swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl SwigluOps for Flex {
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        flex::forward(&gate, &up)
    }

    fn fused_swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        flex::backward(&gate, &up, &gradient)
    }
}

#[cfg(feature = "cube")]
impl SwigluOps for burn_cubecl::CubeBackend {
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        cube::forward(gate, up)
    }

    fn fused_swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube::backward(gate, up, gradient)
    }
}

impl<B: SwigluOps, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        fused_op::<B, _, C, _>(
            [gate, up],
            |[gate, up], keep| {
                let saved = keep.then(|| (gate.clone(), up.clone()));
                (B::fused_swiglu(gate, up), saved)
            },
            |(gate, up), gradient, _| {
                let (d_gate, d_up) = B::fused_swiglu_backward(gate, up, gradient);
                [Some(d_gate), Some(d_up)]
            },
        )
    }

    fn fused_swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [gate, up, gradient] = [gate, up, gradient].map(|t| t.into_primitive());
        let (d_gate, d_up) = B::fused_swiglu_backward(gate, up, gradient);
        (untracked::<B, C>(d_gate), untracked::<B, C>(d_up))
    }
}

/// `silu(gate) * up`, elementwise; `gate`, `up` and the result have one shape and dtype. The arithmetic is
/// in f32 for every dtype.
///
/// # Panics
/// If shapes or dtypes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!((gate.dims(), gate.dtype()), (up.dims(), up.dtype()), "gate and up");
    Tensor::from_dispatch(<Dispatch as SwigluOps>::fused_swiglu(
        gate.into_dispatch(),
        up.into_dispatch(),
    ))
}
