//! Rotary position embedding (Su et al., 2021), in the half-split layout of Hugging Face checkpoints:
//! element `i` of a head is rotated with element `i + head_dim / 2`.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::autodiff::fused_op;

/// The dispatched form of [`rope`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait RopeOps: Backend {
    /// Rotates as [`rope`] does where `direction` is 1, and back where it is -1. The backward of one is
    /// the other.
    #[fusion(dtype = x, shape = x)]
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        direction: f32,
    ) -> FloatTensor<Self>;
}

impl RopeOps for Flex {
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        direction: f32,
    ) -> FloatTensor<Self> {
        flex::rotate(&x, &cos, &sin, direction)
    }
}

#[cfg(feature = "cube")]
impl RopeOps for burn_cubecl::CubeBackend {
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        direction: f32,
    ) -> FloatTensor<Self> {
        cube::rotate(x, cos, sin, direction)
    }
}

impl<B: RopeOps, C: CheckpointStrategy> RopeOps for Autodiff<B, C> {
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        direction: f32,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        fused_op::<B, _, C, _>(
            [x],
            |[x], keep| {
                let saved = keep.then(|| (cos.clone(), sin.clone(), direction));
                (B::fused_rope(x, cos, sin, direction), saved)
            },
            |(cos, sin, direction), gradient, _| {
                [Some(B::fused_rope(gradient, cos, sin, -direction))]
            },
        )
    }
}

/// Rotates each pair of elements by its angle; the backward rotates back. The tables get no gradient.
///
/// # Shapes
/// - `x`: `[batch, seq, heads, head_dim]`, `head_dim` even
/// - `cos`, `sin`: `[batch, seq, head_dim / 2]`, in f32
/// - result: as `x`; the arithmetic is in f32 for every dtype
///
/// # Panics
/// If the shapes do not fit together.
pub fn rope(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let [batch, seq, _, head_dim] = x.dims();
    assert!(head_dim.is_multiple_of(2), "a head_dim of {head_dim} has no pairs");
    assert_eq!([cos.dims(), sin.dims()], [[batch, seq, head_dim / 2]; 2], "an angle for each pair");
    Tensor::from_dispatch(<Dispatch as RopeOps>::fused_rope(
        x.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
        1.0,
    ))
}
