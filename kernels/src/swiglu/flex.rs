//! SwiGLU on the CPU, in one pass. With `s = sigmoid(gate)`:
//! `dgate = dy up s (1 + gate (1 - s))`, `dup = dy gate s`.

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{F32View, float_tensor, sigmoid, with_simd};

const CHUNK: usize = 16 * 1024;

pub(super) fn forward(gate: &FlexTensor, up: &FlexTensor) -> FlexTensor {
    let (a, b) = (F32View::new(gate), F32View::new(up));
    let mut output = vec![0.0; a.len()];
    output.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK))).for_each(
        |(y, (a, b))| {
            with_simd(|| {
                for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                    *y = a * sigmoid(*a) * b;
                }
            });
        },
    );
    float_tensor(output, gate.shape(), gate.dtype())
}

/// The gradients of `gate` and of `up`.
pub(super) fn backward(
    gate: &FlexTensor,
    up: &FlexTensor,
    gradient: &FlexTensor,
) -> [FlexTensor; 2] {
    let (a, b, dy) = (F32View::new(gate), F32View::new(up), F32View::new(gradient));
    let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; a.len()]);
    da.par_chunks_mut(CHUNK)
        .zip(db.par_chunks_mut(CHUNK))
        .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
        .for_each(|((da, db), ((a, b), dy))| {
            with_simd(|| {
                for i in 0..a.len() {
                    let s = sigmoid(a[i]);
                    da[i] = dy[i] * b[i] * s * (1.0 + a[i] * (1.0 - s));
                    db[i] = dy[i] * a[i] * s;
                }
            });
        });
    [float_tensor(da, gate.shape(), gate.dtype()), float_tensor(db, up.shape(), up.dtype())]
}
