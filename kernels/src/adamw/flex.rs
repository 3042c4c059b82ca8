//! AdamW on the CPU, in place.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::AdamwStep;
use crate::flex::{F32View, with_simd};

const CHUNK: usize = 32 * 1024;

pub(super) fn adamw(
    parameter: FlexTensor,
    gradient: &FlexTensor,
    first_moment: FlexTensor,
    second_moment: FlexTensor,
    s: AdamwStep,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    // A moved tensor stays the only owner of its buffer, so that it is updated in place.
    let contiguous = |t: FlexTensor| if t.is_contiguous() { t } else { t.to_contiguous() };
    let (mut parameter, mut first, mut second) =
        (contiguous(parameter), contiguous(first_moment), contiguous(second_moment));
    let gradient = F32View::new(gradient);
    let n = gradient.len();
    let t = s.step as f64;
    let step_size = (s.lr / (1.0 - s.beta1.powf(t))) as f32;
    let root_correction = (1.0 / (1.0 - s.beta2.powf(t))).sqrt() as f32;
    let keep = (1.0 - s.lr * s.weight_decay) as f32;
    let (beta1, beta2, eps) = (s.beta1 as f32, s.beta2 as f32, s.eps as f32);
    let (rest1, rest2) = ((1.0 - s.beta1) as f32, (1.0 - s.beta2) as f32);
    let scale = s.gradient_scale as f32;
    let (p0, m0, v0) = (offset(&parameter), offset(&first), offset(&second));
    let p = &mut parameter.storage_mut::<f32>()[p0..p0 + n];
    let m = &mut first.storage_mut::<f32>()[m0..m0 + n];
    let v = &mut second.storage_mut::<f32>()[v0..v0 + n];
    p.par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .zip(gradient.par_chunks(CHUNK))
        .for_each(|((p, (m, v)), g)| {
            with_simd(|| {
                for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g * scale;
                    *m = beta1 * *m + rest1 * g;
                    *v = beta2 * *v + rest2 * g * g;
                    *p = *p * keep - step_size * *m / (v.sqrt() * root_correction + eps);
                }
            });
        });
    (parameter, first, second)
}

fn offset(tensor: &FlexTensor) -> usize {
    tensor.layout().start_offset()
}
