//! Rows in the order of their experts, and back to their tokens.
//!
//! A token that chose `k` experts has `k` slots. [`permute`] gives a row for each slot, those of expert 0 first, and
//! within an expert in the order of tokens and slots: `rows[r] = x[token of r]`. [`unpermute`] gives each token the
//! weighted sum of its rows, `y[t] = sum over s of w[t, s] rows[row of (t, s)]`. Backward, `dx[t]` is the same sum with
//! weights of 1, `drows[r] = w[slot of r] dy[token of r]`, and `dw[t, s] = rows[row of (t, s)] . dy[t]`. Sums are in
//! f32, in the order of slots, whatever the order of rows: they have the same bits on every run.

#[cfg(feature = "cube")]
mod cube;
mod flex;
mod order;
pub mod reference;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Int, Tensor};

use crate::differentiable;
pub use order::ExpertOrder;
use order::{int_tensor, inverse};

/// The dispatched steps of [`permute`], [`unpermute`] and [`gather_rows`]. Not differentiable. The weights are
/// `[tokens, k]`; slot `s` of token `t` is slot `t k + s`.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait PermuteOps: Backend {
    /// The row of the token of each slot, times the weight of the slot: of `[tokens, dim]` and `[rows]` slots,
    /// `[rows, dim]`.
    #[fusion(dtype = x, shape = [slots[0], x[1]].into())]
    fn take_rows(
        x: FloatTensor<Self>,
        slots: IntTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The weighted sum of the rows of each token: of `[rows, dim]` and the row of each slot, `[tokens, dim]`.
    #[fusion(dtype = rows, shape = [weights[0], rows[1]].into())]
    fn sum_rows(
        rows: FloatTensor<Self>,
        row_of_slot: IntTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The inner product of the row of each slot with the gradient of its token: of `[rows, dim]` and
    /// `[tokens, dim]`, `[tokens, top_k]` in f32.
    #[fusion(dtype = DType::F32, shape = [gradient[0], *top_k].into())]
    fn slot_products(
        rows: FloatTensor<Self>,
        row_of_slot: IntTensor<Self>,
        gradient: FloatTensor<Self>,
        top_k: usize,
    ) -> FloatTensor<Self>;
}

impl PermuteOps for Flex {
    fn take_rows(
        x: FloatTensor<Self>,
        slots: IntTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        flex::take_rows(&x, &slots, &weights)
    }

    fn sum_rows(
        rows: FloatTensor<Self>,
        row_of_slot: IntTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        flex::sum_rows(&rows, &row_of_slot, &weights)
    }

    fn slot_products(
        rows: FloatTensor<Self>,
        row_of_slot: IntTensor<Self>,
        gradient: FloatTensor<Self>,
        top_k: usize,
    ) -> FloatTensor<Self> {
        flex::slot_products(&rows, &row_of_slot, &gradient, top_k)
    }
}

#[cfg(feature = "cube")]
impl PermuteOps for burn_cubecl::CubeBackend {
    fn take_rows(
        x: FloatTensor<Self>,
        slots: IntTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        cube::take_rows(x, slots, weights)
    }

    fn sum_rows(
        rows: FloatTensor<Self>,
        row_of_slot: IntTensor<Self>,
        weights: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        cube::sum_rows(rows, row_of_slot, weights)
    }

    fn slot_products(
        rows: FloatTensor<Self>,
        row_of_slot: IntTensor<Self>,
        gradient: FloatTensor<Self>,
        top_k: usize,
    ) -> FloatTensor<Self> {
        cube::slot_products(rows, row_of_slot, gradient, top_k)
    }
}

/// The row of its token for each slot, in the order of experts. Differentiable.
///
/// # Shapes
/// - `x`: `[tokens, dim]`, on the device of `order`
/// - result: `[tokens * k, dim]`, the rows of expert 0 first
///
/// # Panics
/// If the order is of another number of tokens.
pub fn permute(x: Tensor<2>, order: &ExpertOrder) -> Tensor<2> {
    assert_eq!(x.dims()[0], order.tokens(), "an order of these tokens");
    let order = order.clone();
    differentiable([x], |[x]| {
        let rows = take(x, &order.slots, &order.ones);
        let backward = move |gradient: Tensor<2>| [sum(gradient, &order.row_of_slot, &order.ones)];
        (rows, Box::new(backward))
    })
}

/// The weighted sum of the rows of each token. Differentiable in both.
///
/// # Shapes
/// - `rows`: `[tokens * k, dim]`, as [`permute`] orders them
/// - `weights`: `[tokens, k]` in f32
/// - result: `[tokens, dim]`, in the dtype of `rows`
///
/// # Panics
/// If the order is of other numbers of tokens or slots.
pub fn unpermute(rows: Tensor<2>, weights: Tensor<2>, order: &ExpertOrder) -> Tensor<2> {
    let [tokens, top_k] = weights.dims();
    assert_eq!([tokens, top_k], order.ones.dims(), "an order of these slots");
    assert_eq!(rows.dims()[0], tokens * top_k, "a row for each slot");
    let order = order.clone();
    differentiable([rows, weights], |[rows, weights]| {
        let output = sum(rows.clone(), &order.row_of_slot, &weights);
        let backward = move |gradient: Tensor<2>| {
            let d_rows = take(gradient.clone(), &order.slots, &weights);
            let d_weights = Tensor::<2>::from_dispatch(<Dispatch as PermuteOps>::slot_products(
                rows.into_dispatch(),
                order.row_of_slot.into_dispatch(),
                gradient.into_dispatch(),
                top_k,
            ));
            [d_rows, d_weights.cast(weights.dtype())]
        };
        (output, Box::new(backward))
    })
}

/// The rows of `x` in another order: row `r` of the result is row `index[r]`. Differentiable.
///
/// # Shapes
/// - `x`: `[rows, dim]`
/// - `index`: each of `0..rows` once
/// - result: `[rows, dim]`
///
/// # Panics
/// If the index is no permutation of the rows.
pub fn gather_rows(x: Tensor<2>, index: &[usize]) -> Tensor<2> {
    let rows = x.dims()[0];
    assert_eq!(index.len(), rows, "a place for each row");
    let back = inverse(index);
    let device = x.device().inner();
    let ones = Tensor::ones([rows, 1], (&device, DType::F32));
    let (index, back) = (int_tensor(index, &device), int_tensor(&back, &device));
    differentiable([x], |[x]| {
        let output = take(x, &index, &ones);
        (output, Box::new(move |gradient| [take(gradient, &back, &ones)]))
    })
}

fn take(x: Tensor<2>, slots: &Tensor<1, Int>, weights: &Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as PermuteOps>::take_rows(
        x.into_dispatch(),
        slots.clone().into_dispatch(),
        weights.clone().into_dispatch(),
    ))
}

fn sum(rows: Tensor<2>, row_of_slot: &Tensor<1, Int>, weights: &Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as PermuteOps>::sum_rows(
        rows.into_dispatch(),
        row_of_slot.clone().into_dispatch(),
        weights.clone().into_dispatch(),
    ))
}
