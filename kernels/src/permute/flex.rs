//! Rows by expert on the CPU: a task has some rows, or some tokens, each of which it sums in f32.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{
    F32View, NullaryFnOnce, Number, Values, convert, dot, float_tensor, int_values, simd_fn,
    with_number, with_simd, zeros,
};

/// Least rows that a task takes.
const ROWS_A_TASK: usize = 16;

pub(super) fn take_rows(x: &FlexTensor, slots: &FlexTensor, weights: &FlexTensor) -> FlexTensor {
    let ([_, dim], [_, top_k]) = (x.shape().dims(), weights.shape().dims());
    let (slots, weights) = (int_values(slots), F32View::new(weights));
    let mut output = zeros(Shape::new([slots.len(), dim]), x.dtype());
    with_number!(x.dtype(), E => {
        let x = Values::<E>::new(x);
        let rows = output.storage_mut::<E>().par_chunks_mut(dim.max(1)).zip(&slots);
        rows.with_min_len(ROWS_A_TASK).for_each(|(row, slot)| {
            let slot = *slot as usize;
            let from = &x[slot / top_k * dim..][..dim];
            if weights[slot] == 1.0 {
                row.copy_from_slice(from);
            } else {
                with_simd(Scale { from, weight: weights[slot], to: row });
            }
        });
    });
    output
}

pub(super) fn sum_rows(
    rows: &FlexTensor,
    row_of_slot: &FlexTensor,
    weights: &FlexTensor,
) -> FlexTensor {
    let ([_, dim], [tokens, top_k]) = (rows.shape().dims(), weights.shape().dims());
    let (places, weights) = (int_values(row_of_slot), F32View::new(weights));
    let mut output = zeros(Shape::new([tokens, dim]), rows.dtype());
    with_number!(rows.dtype(), E => {
        let rows = Values::<E>::new(rows);
        let tokens = output.storage_mut::<E>().par_chunks_mut(dim.max(1)).enumerate();
        tokens.with_min_len(ROWS_A_TASK).for_each_init(
            || vec![0.0; dim],
            |sum, (token, output)| {
                sum.fill(0.0);
                for slot in token * top_k..(token + 1) * top_k {
                    let row = &rows[places[slot] as usize * dim..][..dim];
                    with_simd(Add { row, weight: weights[slot], sum });
                }
                convert(sum, output);
            },
        );
    });
    output
}

pub(super) fn slot_products(
    rows: &FlexTensor,
    row_of_slot: &FlexTensor,
    gradient: &FlexTensor,
    top_k: usize,
) -> FlexTensor {
    let [tokens, dim] = gradient.shape().dims();
    let places = int_values(row_of_slot);
    let gradient = F32View::new(gradient);
    let mut products = vec![0.0; tokens * top_k];
    with_number!(rows.dtype(), E => {
        let rows = Values::<E>::new(rows);
        let slots = products.par_iter_mut().zip(&places).enumerate();
        slots.with_min_len(ROWS_A_TASK).for_each_init(
            || vec![0.0; dim],
            |wide, (slot, (product, place))| {
                convert(&rows[*place as usize * dim..][..dim], wide);
                *product = product_of(wide, &gradient[slot / top_k * dim..][..dim]);
            },
        );
    });
    float_tensor(products, Shape::new([tokens, top_k]), DType::F32)
}

/// `to = weight from`.
struct Scale<'a, E> {
    from: &'a [E],
    weight: f32,
    to: &'a mut [E],
}

impl<E: Number> NullaryFnOnce for Scale<'_, E> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = E::narrow(self.weight * from.widen());
        }
    }
}

/// `sum += weight row`.
struct Add<'a, E> {
    row: &'a [E],
    weight: f32,
    sum: &'a mut [f32],
}

impl<E: Number> NullaryFnOnce for Add<'_, E> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (sum, x) in self.sum.iter_mut().zip(self.row) {
            *sum += self.weight * x.widen();
        }
    }
}

simd_fn! {
    fn product_of(a: &'a [f32], b: &'a [f32]) -> f32 {
        dot(a, b)
    }
}
