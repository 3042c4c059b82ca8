//! AdamW on the CPU, in place.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::AdamwStep;
use crate::flex::{F32View, simd_fn};

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
    let numbers = Numbers::of(s);
    let (p0, m0, v0) = (offset(&parameter), offset(&first), offset(&second));
    let p = &mut parameter.storage_mut::<f32>()[p0..p0 + n];
    let m = &mut first.storage_mut::<f32>()[m0..m0 + n];
    let v = &mut second.storage_mut::<f32>()[v0..v0 + n];
    p.par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .zip(gradient.par_chunks(CHUNK))
        .for_each(|((p, (m, v)), g)| update(p, m, v, g, &numbers));
    (parameter, first, second)
}

/// The step's numbers in f32, with all that does not depend on the element worked out.
struct Numbers {
    step_size: f32,
    root_correction: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
    gradient_scale: f32,
}

impl Numbers {
    fn of(s: AdamwStep) -> Self {
        let t = s.step as f64;
        Self {
            step_size: (s.lr / (1.0 - s.beta1.powf(t))) as f32,
            root_correction: (1.0 / (1.0 - s.beta2.powf(t))).sqrt() as f32,
            keep: (1.0 - s.lr * s.weight_decay) as f32,
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            rest1: (1.0 - s.beta1) as f32,
            rest2: (1.0 - s.beta2) as f32,
            eps: s.eps as f32,
            gradient_scale: s.gradient_scale as f32,
        }
    }
}

simd_fn! {
    fn update(
        parameter: &'a mut [f32],
        first: &'a mut [f32],
        second: &'a mut [f32],
        gradient: &'a [f32],
        n: &'a Numbers,
    ) -> () {
        for (((p, m), v), g) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
            let g = g * n.gradient_scale;
            *m = n.beta1 * *m + n.rest1 * g;
            *v = n.beta2 * *v + n.rest2 * g * g;
            *p = *p * n.keep - n.step_size * *m / (v.sqrt() * n.root_correction + n.eps);
        }
    }
}

fn offset(tensor: &FlexTensor) -> usize {
    tensor.layout().start_offset()
}
