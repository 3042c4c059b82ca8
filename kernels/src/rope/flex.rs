//! RoPE on the CPU, in one pass.

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;

use crate::flex::{F32View, float_tensor, for_rows, simd_fn};

/// Rotates forward (`direction` 1) or back (-1).
pub(super) fn rotate(
    x: &FlexTensor,
    cos: &FlexTensor,
    sin: &FlexTensor,
    direction: f32,
) -> FlexTensor {
    let [_, _, heads, head_dim] = x.shape().dims();
    let half = head_dim / 2;
    let (input, cos, sin) = (F32View::new(x), F32View::new(cos), F32View::new(sin));
    let mut output = vec![0.0; input.len()];
    let width = heads * head_dim;
    for_rows(&mut output, width, |first, rows| {
        let (cos, sin) = (&cos[first * half..], &sin[first * half..]);
        rotate_rows(rows, &input[first * width..], cos, sin, [width, head_dim], direction);
    });
    float_tensor(output, x.shape(), x.dtype())
}

simd_fn! {
    fn rotate_rows(
        y: &'a mut [f32],
        x: &'a [f32],
        cos: &'a [f32],
        sin: &'a [f32],
        sizes: [usize; 2],
        direction: f32,
    ) -> () {
        let [width, head_dim] = sizes;
        let half = head_dim / 2;
        let tables = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        let tokens = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((y, x), (cos, sin)) in tokens.zip(tables) {
            for (y, x) in y.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
                let ((y0, y1), (x0, x1)) = (y.split_at_mut(half), x.split_at(half));
                for j in 0..half {
                    let sin = direction * sin[j];
                    y0[j] = x0[j] * cos[j] - x1[j] * sin;
                    y1[j] = x1[j] * cos[j] + x0[j] * sin;
                }
            }
        }
    }
}
