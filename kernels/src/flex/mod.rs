//! What the native CPU kernels share: access to tensors, SIMD mathematics, small matrix products.

mod access;
mod few;
mod gemm;
mod inner;
mod matmul;
mod number;
mod rows;
mod simd;

pub(crate) use access::{
    F32View, Values, convert_in_parallel, f32_tensor_set_by, float_tensor, int_values, owned,
    values_mut, zeros,
};
pub(crate) use few::multiply_few;
pub(crate) use gemm::{COLUMN_STEP, Strided, multiply_tile};
pub(crate) use inner::multiply_transposed;
pub(crate) use matmul::{Matrix, multiply, multiply_into};
pub(crate) use number::{Number, convert, with_number};
pub(crate) use rows::{for_rows, sum_over_rows};
pub(crate) use simd::{NullaryFnOnce, dot, exp, exp2, max, sigmoid, simd_fn, sum, tanh, with_simd};
