//! SwiGLU on the CPU, in one pass. With `s = sigmoid(gate)`:
//! `dgate = dy up s (1 + gate (1 - s))`, `dup = dy gate s`.

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{F32View, float_tensor, sigmoid, simd_fn};

const CHUNK: usize = 16 * 1024;

pub(super) fn forward(gate: &FlexTensor, up: &FlexTensor) -> FlexTensor {
    let (a, b) = (F32View::new(gate), F32View::new(up));
    let mut output = vec![0.0; a.len()];
    output.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK))).for_each(
        |(y, (a, b))| {
            forward_chunk(y, a, b);
        },
    );
    float_tensor(output, gate.shape(), gate.dtype())
}

/// The gradients of `gate` and of `up`.
pub(super) fn backward(
    gate: &FlexTensor,
    up: &FlexTensor,
    gradient: &FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let (a, b, dy) = (F32View::new(gate), F32View::new(up), F32View::new(gradient));
    let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; a.len()]);
    da.par_chunks_mut(CHUNK)
        .zip(db.par_chunks_mut(CHUNK))
        .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
        .for_each(|((da, db), ((a, b), dy))| {
            backward_chunk(da, db, a, b, dy);
        });
    (float_tensor(da, gate.shape(), gate.dtype()), float_tensor(db, up.shape(), up.dtype()))
}

simd_fn! {
    fn forward_chunk(y: &'a mut [f32], gate: &'a [f32], up: &'a [f32]) -> () {
        for ((y, a), b) in y.iter_mut().zip(gate).zip(up) {
            *y = a * sigmoid(*a) * b;
        }
    }
}

simd_fn! {
    fn backward_chunk(
        d_gate: &'a mut [f32],
        d_up: &'a mut [f32],
        gate: &'a [f32],
        up: &'a [f32],
        dy: &'a [f32],
    ) -> () {
        for ((((da, db), a), b), dy) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(dy) {
            let s = sigmoid(*a);
            *da = dy * b * s * (1.0 + a * (1.0 - s));
            *db = dy * a * s;
        }
    }
}
