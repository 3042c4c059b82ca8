//! The sum of squares, for the global norm of gradients.
//!
//! It is taken in two stages of fixed order: parts of a size that depends on nothing but the number of
//! elements, then the parts. The result has the same bits for any number of threads.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

/// The dispatched form of [`sum_of_squares`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait NormOps: Backend {
    /// See [`sum_of_squares`].
    #[fusion(dtype = burn::tensor::DType::F32, shape = [1].into())]
    fn fused_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl NormOps for Flex {
    fn fused_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        flex::sum_of_squares(&x)
    }
}

#[cfg(feature = "cube")]
impl NormOps for burn_cubecl::CubeBackend {
    fn fused_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        cube::sum_of_squares(x)
    }
}

/// The sum of the squares of all elements of a tensor of any float dtype, `[1]` in f32. Not
/// differentiable.
pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as NormOps>::fused_sum_of_squares(x.into_dispatch()))
}
