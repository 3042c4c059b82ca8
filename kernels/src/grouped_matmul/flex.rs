//! Grouped products on the CPU: tasks are strips of rows of one expert's result, each a product of its own, so that
//! many small experts and few large ones keep all threads busy alike.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{
    F32View, Number, Strided, Values, convert, multiply_on_thread, multiply_transposed,
    with_number, zeros,
};

/// Rows of a result that a task computes. It does not depend on the number of threads, so neither do the bits.
const ROWS_A_TASK: usize = 128;

/// Elements of a cache line.
const LINE: usize = 16;

/// `x_e W[e]` for the rows of each expert.
pub(super) fn product(x: &FlexTensor, weights: &FlexTensor, counts: &[usize]) -> FlexTensor {
    let [_, inputs, outputs] = weights.shape().dims();
    by_rows(x, weights, counts, outputs, |strip, x, weight| {
        bring_near(weight);
        let sizes = [strip.rows, outputs, inputs];
        let (x, weight) = (matrix(x, inputs), matrix(weight, outputs));
        multiply_on_thread(sizes, x, weight, strip.values, outputs, false);
    })
}

/// `dy_e W[e]^T` for the rows of each expert.
pub(super) fn input_gradient(
    gradient: &FlexTensor,
    weights: &FlexTensor,
    counts: &[usize],
) -> FlexTensor {
    let [_, inputs, outputs] = weights.shape().dims();
    by_rows(gradient, weights, counts, inputs, |strip, gradient, weight| {
        multiply_transposed([strip.rows, inputs, outputs], gradient, weight, strip.values);
    })
}

/// A result of `width` columns, whose strips `multiply(strip, x, weight)` sets from their rows of `x` and the matrix
/// of their expert.
fn by_rows(
    x: &FlexTensor,
    weights: &FlexTensor,
    counts: &[usize],
    width: usize,
    multiply: impl Fn(Strip, &[f32], &[f32]) + Sync,
) -> FlexTensor {
    let [rows, inner] = x.shape().dims();
    let [_, inputs, outputs] = weights.shape().dims();
    let (dtype, firsts) = (weights.dtype(), first_rows(counts));
    let x = F32View::new(x);
    let mut output = zeros(Shape::new([rows, width]), dtype);
    with_number!(dtype, E => {
        let weights = Values::<E>::new(weights);
        for_strips(output.storage_mut::<E>(), width, counts, |strip, scratch| {
            let x = &x[(firsts[strip.expert] + strip.first) * inner..][..strip.rows * inner];
            let weight = &weights[strip.expert * inputs * outputs..][..inputs * outputs];
            multiply(strip, x, widened(weight, scratch));
        });
    });
    output
}

/// `x_e^T dy_e` for the rows of each expert: zeros where there are none.
pub(super) fn weight_gradient(
    x: &FlexTensor,
    gradient: &FlexTensor,
    counts: &[usize],
) -> FlexTensor {
    let ([_, inputs], [_, outputs]) = (x.shape().dims(), gradient.shape().dims());
    let (dtype, firsts) = (x.dtype(), first_rows(counts));
    let (x, gradient) = (F32View::new(x), F32View::new(gradient));
    let mut output = zeros(Shape::new([counts.len(), inputs, outputs]), dtype);
    let heights = vec![inputs; counts.len()];
    with_number!(dtype, E => {
        for_strips(output.storage_mut::<E>(), outputs, &heights, |strip, _| {
            let (first, count) = (firsts[strip.expert], counts[strip.expert]);
            if count > 0 {
                let x = matrix(&x[first * inputs..], inputs).transposed().rows_from(strip.first);
                let gradient = matrix(&gradient[first * outputs..], outputs);
                let sizes = [strip.rows, outputs, count];
                multiply_on_thread(sizes, x, gradient, strip.values, outputs, false);
            }
        });
    });
    output
}

/// Some rows of the result of one expert.
struct Strip<'a> {
    expert: usize,
    /// The first of the rows, among those of the expert.
    first: usize,
    rows: usize,
    /// What is to be set; zeros before.
    values: &'a mut [f32],
}

/// Calls `f(strip, scratch)` in parallel on the strips of a result of zeros in which each expert has `heights` rows of
/// `width` values.
fn for_strips<E: Number>(
    mut rest: &mut [E],
    width: usize,
    heights: &[usize],
    f: impl Fn(Strip, &mut Vec<f32>) + Sync,
) {
    if width == 0 {
        return;
    }
    let mut strips = Vec::new();
    for (expert, height) in heights.iter().enumerate() {
        let (rows, after) = rest.split_at_mut(height * width);
        let chunks = rows.chunks_mut(ROWS_A_TASK * width).enumerate();
        strips.extend(chunks.map(|(i, values)| (expert, i * ROWS_A_TASK, values)));
        rest = after;
    }
    let scratch = || (Vec::new(), Vec::new());
    strips.into_par_iter().for_each_init(scratch, |(operand, sums), (expert, first, values)| {
        let rows = values.len() / width;
        if E::dtype() == DType::F32 {
            let values = bytemuck::cast_slice_mut(values);
            return f(Strip { expert, first, rows, values }, operand);
        }
        sums.clear();
        sums.resize(values.len(), 0.0);
        f(Strip { expert, first, rows, values: sums }, operand);
        convert(sums, values);
    });
}

/// The first row of each expert.
fn first_rows(counts: &[usize]) -> Vec<usize> {
    let mut next = 0;
    let first = |count: &usize| {
        next += count;
        next - count
    };
    counts.iter().map(first).collect()
}

fn matrix(values: &[f32], width: usize) -> Strided<'_> {
    Strided { values, row: width, column: 1 }
}

/// The values as f32.
fn widened<'a, E: Number>(values: &'a [E], scratch: &'a mut Vec<f32>) -> &'a [f32] {
    if E::dtype() == DType::F32 {
        return bytemuck::cast_slice(values);
    }
    scratch.resize(values.len(), 0.0);
    convert(values, scratch);
    scratch
}

/// Reads a matrix once from front to back, which memory does fast. The product goes over it in columns as narrow as two
/// cache lines, which the machine does not foresee: with few rows it would wait for most of them.
fn bring_near(matrix: &[f32]) {
    let seen = matrix.iter().step_by(LINE).fold(0, |seen, value| seen ^ value.to_bits());
    std::hint::black_box(seen);
}
