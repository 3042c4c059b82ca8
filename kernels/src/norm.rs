//! The sum of squares, for the global norm of gradients.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Shape, Tensor};
use rayon::prelude::*;

use crate::device::is_flex;
use crate::flex::{F32View, dot, float_tensor, simd_fn};

/// The dispatched form of [`sum_of_squares`].
#[backend_extension(Flex)]
pub trait NormOps: Backend {
    /// See [`sum_of_squares`].
    fn fused_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl NormOps for Flex {
    fn fused_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        const CHUNK: usize = 4096;
        let parts: Vec<f64> =
            F32View::new(&x).par_chunks(CHUNK).map(|chunk| f64::from(square_sum(chunk))).collect();
        let total: f64 = parts.iter().sum();
        float_tensor(vec![total as f32], Shape::new([1]), DType::F32)
    }
}

simd_fn! {
    fn square_sum(chunk: &'a [f32]) -> f32 {
        dot(chunk, chunk)
    }
}

/// The sum of the squares of all elements, `[1]` in f32. Not differentiable. On flex the partial sums
/// are added in f64 in a fixed order.
pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    if !is_flex(&x.device()) {
        return x.cast(DType::F32).square().sum();
    }
    Tensor::from_dispatch(<Dispatch as NormOps>::fused_sum_of_squares(x.into_dispatch()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, values};

    #[test]
    fn equals_the_f64_sum() {
        for n in [0, 1, 17, 4097, 100_003] {
            let x = noise([n], 5);
            let want: f64 = values(x.clone()).iter().map(|x| f64::from(*x).powi(2)).sum();
            let got = f64::from(values(sum_of_squares(x))[0]);
            assert!((got - want).abs() <= 1e-6 * want, "{got} {want}");
        }
    }
}
