//! The sum of squares on the CPU: f32 within a part, f64 over the parts.

use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{F32View, dot, float_tensor, simd_fn};

const PART: usize = 4096;

pub(super) fn sum_of_squares(x: &FlexTensor) -> FlexTensor {
    let parts: Vec<f64> =
        F32View::new(x).par_chunks(PART).map(|part| f64::from(square_sum(part))).collect();
    let total: f64 = parts.iter().sum();
    float_tensor(vec![total as f32], Shape::new([1]), DType::F32)
}

simd_fn! {
    fn square_sum(part: &'a [f32]) -> f32 {
        dot(part, part)
    }
}
