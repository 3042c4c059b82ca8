//! The sum of the chunks that a rank has received from all others: `y = scale * sum over i of x[i]`.
//!
//! One pass: each element is summed in f32, in the order of the rows (so that the result depends on no
//! timing), scaled, and rounded once to the dtype of the result.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

/// The dispatched form of [`reduce_chunks`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait ReduceOps: Backend {
    /// See [`reduce_chunks`].
    #[fusion(dtype = *dtype, shape = [chunks[1]].into())]
    fn fused_reduce_chunks(
        chunks: FloatTensor<Self>,
        scale: f32,
        dtype: DType,
    ) -> FloatTensor<Self>;
}

impl ReduceOps for Flex {
    fn fused_reduce_chunks(
        chunks: FloatTensor<Self>,
        scale: f32,
        dtype: DType,
    ) -> FloatTensor<Self> {
        flex::reduce_chunks(&chunks, scale, dtype)
    }
}

#[cfg(feature = "cube")]
impl ReduceOps for burn_cubecl::CubeBackend {
    fn fused_reduce_chunks(
        chunks: FloatTensor<Self>,
        scale: f32,
        dtype: DType,
    ) -> FloatTensor<Self> {
        cube::reduce_chunks(chunks, scale, dtype)
    }
}

/// The sum of `n` chunks in row order, times `scale`. Not tracked.
///
/// # Shapes
/// - `chunks`: `[n, length]` in f32, f16 or bf16
/// - result: `[length]` in `dtype` (f32, f16 or bf16)
pub fn reduce_chunks(chunks: Tensor<2>, scale: f32, dtype: DType) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as ReduceOps>::fused_reduce_chunks(
        chunks.into_dispatch(),
        scale,
        dtype,
    ))
}
