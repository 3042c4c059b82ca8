//! Grouped products on the CPU: tasks are strips of rows of one expert's result, each a product of its own, so that
//! many small experts and few large ones keep all threads busy alike.
//!
//! With few rows an expert, a matrix is in use for little longer than it takes to read or write it: none is copied into
//! another order, and results are not cleared before they are set.

use std::mem::MaybeUninit;
use std::slice;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{
    COLUMN_STEP, F32View, Number, Strided, Values, convert, f32_tensor_set_by, multiply_few,
    multiply_into, multiply_transposed, with_number, zeros,
};

/// Rows of a result that a task computes. It does not depend on the number of threads, so neither do the bits.
const ROWS_A_TASK: usize = 256;

/// Rows for which a matrix is worth a copy with rows as columns.
const MANY: usize = 192;

/// Rows that lie a multiple of this apart share so few lines of a cache that reading columns of them is slow: 2 KiB.
const COLLISION: usize = 512;

/// Rows of an expert for which memory, and not arithmetic, is what a product waits for.
const FEW: usize = 64;

/// `x_e W[e]` for the rows of each expert.
pub(super) fn product(x: &FlexTensor, weights: &FlexTensor, counts: &[usize]) -> FlexTensor {
    let [_, inputs, outputs] = weights.shape().dims();
    by_rows(x, weights, counts, outputs, |strip, x, weight| {
        let sizes = [strip.rows, outputs, inputs];
        multiply(sizes, strip.rows, matrix(x, inputs), weight, strip.values)
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
        let sizes = [strip.rows, inputs, outputs];
        if strip.rows < MANY || outputs.is_multiple_of(COLLISION) {
            multiply_transposed(sizes, gradient, weight, strip.values)
        } else {
            let weight = matrix(weight, outputs).transposed();
            multiply_into(sizes, matrix(gradient, outputs), weight, strip.values)
        }
    })
}

/// A result of `width` columns, whose strips `multiply(strip, x, weight)` sets and gives back, from their rows
/// of `x` and the matrix of their expert.
fn by_rows(
    x: &FlexTensor,
    weights: &FlexTensor,
    counts: &[usize],
    width: usize,
    multiply: impl for<'a> Fn(Strip<'a>, &[f32], &[f32]) -> &'a mut [f32] + Sync,
) -> FlexTensor {
    let [rows, inner] = x.shape().dims();
    let [_, inputs, outputs] = weights.shape().dims();
    let (dtype, firsts) = (weights.dtype(), first_rows(counts));
    let x = F32View::new(x);
    with_number!(dtype, E => {
        let weights = Values::<E>::new(weights);
        set_by_strips(Shape::new([rows, width]), dtype, counts, |strip, scratch| {
            let x = &x[(firsts[strip.expert] + strip.first) * inner..][..strip.rows * inner];
            let weight = &weights[strip.expert * inputs * outputs..][..inputs * outputs];
            multiply(strip, x, widened(weight, scratch))
        })
    })
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
    let shape = Shape::new([counts.len(), inputs, outputs]);
    set_by_strips(shape, dtype, &vec![inputs; counts.len()], |strip, _| {
        let (first, count) = (firsts[strip.expert], counts[strip.expert]);
        let x = &x[first * inputs..][..count * inputs];
        let columns = x.get(strip.first..).unwrap_or_default(); // there are none without rows
        let gradient = &gradient[first * outputs..][..count * outputs];
        let sizes = [strip.rows, outputs, count];
        let columns = matrix(columns, inputs).transposed();
        multiply(sizes, count, columns, gradient, strip.values)
    })
}

/// `c[m, n] = a[m, k] b[k, n]`, for so many rows of an expert.
fn multiply<'a>(
    sizes: [usize; 3],
    rows: usize,
    a: Strided,
    b: &[f32],
    c: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    let width = sizes[1];
    if rows <= FEW && width.is_multiple_of(COLUMN_STEP) {
        multiply_few(sizes, a, b, c)
    } else {
        multiply_into(sizes, a, matrix(b, width), c)
    }
}

/// Some rows of the result of one expert.
struct Strip<'a> {
    expert: usize,
    /// The first of the rows, among those of the expert.
    first: usize,
    rows: usize,
    /// What is to be set.
    values: &'a mut [MaybeUninit<f32>],
}

/// A tensor in which each expert has `heights` rows, whose strips `set(strip, scratch)` sets and gives back.
fn set_by_strips(
    shape: Shape,
    dtype: DType,
    heights: &[usize],
    set: impl for<'a> Fn(Strip<'a>, &mut Vec<f32>) -> &'a mut [f32] + Sync,
) -> FlexTensor {
    let width = shape[shape.num_dims() - 1];
    if dtype == DType::F32 {
        return f32_tensor_set_by(shape, |all| {
            for_strips(all, width, heights, |expert, first, values, scratch| {
                let (start, length) = (values.as_ptr(), values.len());
                let values = set(Strip { expert, first, rows: length / width, values }, scratch);
                assert_eq!((values.as_ptr(), values.len()), (start.cast(), length), "is set");
            });
            // SAFETY: the strips are all of it, and have been set.
            unsafe { slice::from_raw_parts_mut(all.as_mut_ptr().cast(), all.len()) }
        });
    }
    let mut output = zeros(shape, dtype);
    with_number!(dtype, E => {
        for_strips(output.storage_mut::<E>(), width, heights, |expert, first, values, scratch| {
            let mut sums = vec![MaybeUninit::uninit(); values.len()];
            let strip = Strip { expert, first, rows: values.len() / width, values: &mut sums };
            convert(set(strip, scratch), values);
        });
    });
    output
}

/// Calls `task(expert, first row, values, scratch)` in parallel on the strips of a matrix of `width` columns, in which
/// each expert has `heights` rows.
fn for_strips<T: Send>(
    mut rest: &mut [T],
    width: usize,
    heights: &[usize],
    task: impl Fn(usize, usize, &mut [T], &mut Vec<f32>) + Sync,
) {
    let mut strips = Vec::new();
    for (expert, height) in heights.iter().enumerate() {
        let (rows, after) = rest.split_at_mut(height * width);
        let chunks = rows.chunks_mut((ROWS_A_TASK * width).max(1)).enumerate();
        strips.extend(chunks.map(|(i, values)| (expert, i * ROWS_A_TASK, values)));
        rest = after;
    }
    assert!(rest.is_empty(), "the heights add up to the rows");
    strips.into_par_iter().for_each_init(Vec::new, |scratch, (expert, first, values)| {
        task(expert, first, values, scratch);
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
