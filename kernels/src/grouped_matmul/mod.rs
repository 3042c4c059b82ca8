//! Products of rows with the matrix of their expert: `y[r] = x[r] W[e]` for each row `r` of expert `e`.
//!
//! The rows of an expert follow each other, those of expert 0 first. Experts may have any number of rows; none is
//! padded. With `x_e` and `dy_e` the rows of expert `e`: `dx_e = dy_e W[e]^T`, `dW[e] = x_e^T dy_e`, which is zero for
//! an expert without rows. As for [`linear`](crate::linear()), `dW` can be put off.
//!
//! Grouped products of experts: Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", 2022.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Shape, Tensor};

use crate::differentiable::partly_differentiable;
use crate::linear::now_or_later;

/// The dispatched products of [`grouped_matmul`]. Not differentiable.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait GroupedMatmulOps: Backend {
    /// `x_e W[e]`: of `[rows, in]` and `[experts, in, out]`, `[rows, out]`.
    #[fusion(dtype = x, shape = [x[0], weights[2]].into())]
    fn grouped_product(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self>;

    /// `dy_e W[e]^T`: of `[rows, out]` and `[experts, in, out]`, `[rows, in]`.
    #[fusion(dtype = gradient, shape = [gradient[0], weights[1]].into())]
    fn grouped_input_gradient(
        gradient: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self>;

    /// `x_e^T dy_e`: of `[rows, in]` and `[rows, out]`, `[experts, in, out]`.
    #[fusion(dtype = x, shape = [counts.len(), x[1], gradient[1]].into())]
    fn grouped_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self>;
}

impl GroupedMatmulOps for Flex {
    fn grouped_product(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self> {
        flex::product(&x, &weights, &counts)
    }

    fn grouped_input_gradient(
        gradient: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self> {
        flex::input_gradient(&gradient, &weights, &counts)
    }

    fn grouped_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self> {
        flex::weight_gradient(&x, &gradient, &counts)
    }
}

#[cfg(feature = "cube")]
impl GroupedMatmulOps for burn_cubecl::CubeBackend {
    fn grouped_product(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self> {
        cube::product(x, weights, &counts)
    }

    fn grouped_input_gradient(
        gradient: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self> {
        cube::input_gradient(gradient, weights, &counts)
    }

    fn grouped_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        counts: Vec<usize>,
    ) -> FloatTensor<Self> {
        cube::weight_gradient(x, gradient, &counts)
    }
}

/// Each row times the matrix of its expert. Sums are in f32, and rounded once to the dtype of `x`. Differentiable in
/// `x` and `weights`; the gradient of the weights waits under [`put_off_weights`](crate::put_off_weights).
///
/// # Shapes
/// - `x`: `[rows, in]`, the rows of expert 0 first
/// - `weights`: `[experts, in, out]`, in the dtype of `x`
/// - `counts`: the rows of each expert
/// - result: `[rows, out]`
///
/// # Panics
/// If the counts are not one an expert, or do not add up to the rows; if the widths or dtypes disagree.
pub fn grouped_matmul(x: Tensor<2>, weights: Tensor<3>, counts: &[usize]) -> Tensor<2> {
    let ([rows, width], [experts, inputs, _]) = (x.dims(), weights.dims());
    assert_eq!(counts.len(), experts, "a count for each expert");
    assert_eq!(counts.iter().sum::<usize>(), rows, "the counts add up to the rows");
    assert_eq!(width, inputs, "the rows are as wide as the experts' inputs");
    assert_eq!(x.dtype(), weights.dtype(), "rows and weights have one dtype");
    let counts = counts.to_vec();
    let tracked = weights.clone();
    // Inputs of a differentiable function have one rank.
    let x = reshaped(x, [1, rows, width]);
    partly_differentiable([x, weights], |[x, weights]| {
        let x: Tensor<2> = reshaped(x, [rows, width]);
        let product = <Dispatch as GroupedMatmulOps>::grouped_product(
            x.clone().into_dispatch(),
            weights.clone().into_dispatch(),
            counts.clone(),
        );
        let backward = move |gradient: Tensor<2>| {
            let dx = Tensor::<2>::from_dispatch(Dispatch::grouped_input_gradient(
                gradient.clone().into_dispatch(),
                weights.into_dispatch(),
                counts.clone(),
            ));
            let dw = move || {
                Tensor::from_dispatch(Dispatch::grouped_weight_gradient(
                    x.into_dispatch(),
                    gradient.into_dispatch(),
                    counts,
                ))
            };
            [Some(reshaped(dx, [1, rows, width])), now_or_later(tracked, dw)]
        };
        (Tensor::<2>::from_dispatch(product), Box::new(backward))
    })
}

/// The tensor in another shape, which may hold nothing: a size of 0 means "as before" to `Tensor::reshape`.
fn reshaped<const D: usize, const E: usize>(x: Tensor<D>, shape: [usize; E]) -> Tensor<E> {
    Tensor::from_dispatch(Dispatch::float_reshape(x.into_dispatch(), Shape::new(shape)))
}
