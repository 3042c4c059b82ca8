//! RMSNorm on the CPU: one pass forward, one pass backward.
//!
//! With `r = 1 / sqrt(mean(x^2) + eps)` and `g = dy * weight`:
//! `dx = r (g - x r^2 mean(g x))`, `dweight = sum over rows of dy x r`.

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;

use crate::flex::{F32View, dot, float_tensor, for_rows, simd_fn, sum_over_rows};

pub(super) fn forward(x: &FlexTensor, weight: &FlexTensor, eps: f32) -> FlexTensor {
    let (input, weight) = (F32View::new(x), F32View::new(weight));
    let dim = weight.len();
    let mut output = vec![0.0; input.len()];
    for_rows(&mut output, dim, |first, rows| {
        forward_rows(rows, &input[first * dim..], &weight, eps);
    });
    float_tensor(output, x.shape(), x.dtype())
}

/// The gradients of `x` and of `weight`.
pub(super) fn backward(
    x: &FlexTensor,
    weight: &FlexTensor,
    eps: f32,
    gradient: &FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let (input, scale, dy) = (F32View::new(x), F32View::new(weight), F32View::new(gradient));
    let dim = scale.len();
    let mut dx = vec![0.0; input.len()];
    let d_weight = sum_over_rows(&mut dx, dim, |first, rows, partial| {
        let start = first * dim;
        backward_rows(rows, partial, &input[start..], &dy[start..], &scale, eps);
    });
    (float_tensor(dx, x.shape(), x.dtype()), float_tensor(d_weight, weight.shape(), weight.dtype()))
}

simd_fn! {
    fn forward_rows(y: &'a mut [f32], x: &'a [f32], weight: &'a [f32], eps: f32) -> () {
        let dim = weight.len();
        for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
            let r = inverse_rms(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * r * w;
            }
        }
    }
}

simd_fn! {
    fn backward_rows(
        dx: &'a mut [f32],
        d_weight: &'a mut [f32],
        x: &'a [f32],
        dy: &'a [f32],
        weight: &'a [f32],
        eps: f32,
    ) -> () {
        let dim = weight.len();
        let rows = x.chunks_exact(dim).zip(dy.chunks_exact(dim));
        for (dx, (x, dy)) in dx.chunks_exact_mut(dim).zip(rows) {
            let r = inverse_rms(x, eps);
            for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = dy * w;
            }
            let mean = dot(dx, x) / dim as f32;
            let pull = r * r * mean;
            for (((dx, x), dy), d_weight) in dx.iter_mut().zip(x).zip(dy).zip(d_weight.iter_mut()) {
                *dx = r * (*dx - x * pull);
                *d_weight += dy * x * r;
            }
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}
