//! What the native CPU kernels share: access to tensors, SIMD mathematics, small matrix products.

mod access;
mod gemm;
mod rows;
mod simd;

pub(crate) use access::{F32View, float_tensor, int_values};
pub(crate) use gemm::{Strided, multiply_add};
pub(crate) use rows::{for_rows, sum_over_rows};
pub(crate) use simd::{NullaryFnOnce, dot, exp, max, sigmoid, simd_fn, sum, with_simd};
