//! RMSNorm on the CPU: one pass forward, one pass backward.
//!
//! With `r = 1 / sqrt(mean(x^2) + eps)` and `g = dy * weight`:
//! `dx = r (g - x r^2 mean(g x))`, `dweight = sum over rows of dy x r`.

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;

use crate::flex::{F32View, dot, float_tensor, for_rows, sum_over_rows, with_simd};

pub(super) fn forward(x: &FlexTensor, weight: &FlexTensor, eps: f32) -> FlexTensor {
    let (input, weight) = (F32View::new(x), F32View::new(weight));
    let dim = weight.len();
    let mut output = vec![0.0; input.len()];
    for_rows(&mut output, dim, |first, rows| {
        with_simd(|| {
            for (i, y) in rows.chunks_exact_mut(dim).enumerate() {
                let x = &input[(first + i) * dim..][..dim];
                let r = inverse_rms(x, eps);
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight.iter()) {
                    *y = x * r * w;
                }
            }
        });
    });
    float_tensor(output, x.shape(), x.dtype())
}

/// The gradients of `x` and of `weight`.
pub(super) fn backward(
    x: &FlexTensor,
    weight: &FlexTensor,
    eps: f32,
    gradient: &FlexTensor,
) -> [FlexTensor; 2] {
    let (input, scale, dy) = (F32View::new(x), F32View::new(weight), F32View::new(gradient));
    let dim = scale.len();
    let mut dx = vec![0.0; input.len()];
    let d_weight = sum_over_rows(&mut dx, dim, |first, rows, partial| {
        with_simd(|| {
            for (i, dx) in rows.chunks_exact_mut(dim).enumerate() {
                let x = &input[(first + i) * dim..][..dim];
                let dy = &dy[(first + i) * dim..][..dim];
                let r = inverse_rms(x, eps);
                for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(scale.iter()) {
                    *dx = dy * w;
                }
                let mean = dot(dx, x) / dim as f32;
                let pull = r * r * mean;
                for (((dx, x), dy), partial) in dx.iter_mut().zip(x).zip(dy).zip(partial.iter_mut())
                {
                    *dx = r * (*dx - x * pull);
                    *partial += dy * x * r;
                }
            }
        });
    });
    [float_tensor(dx, x.shape(), x.dtype()), float_tensor(d_weight, weight.shape(), weight.dtype())]
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}
