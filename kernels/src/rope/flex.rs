//! RoPE on the CPU, in one pass.

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;

use crate::flex::{F32View, float_tensor, for_rows, with_simd};

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
        with_simd(|| {
            for (i, token) in rows.chunks_exact_mut(width).enumerate() {
                let row = first + i;
                let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
                let input = &input[row * width..][..width];
                for (y, x) in token.chunks_exact_mut(head_dim).zip(input.chunks_exact(head_dim)) {
                    let ((y0, y1), (x0, x1)) = (y.split_at_mut(half), x.split_at(half));
                    for j in 0..half {
                        let sin = direction * sin[j];
                        y0[j] = x0[j] * cos[j] - x1[j] * sin;
                        y1[j] = x1[j] * cos[j] + x0[j] * sin;
                    }
                }
            }
        });
    });
    float_tensor(output, x.shape(), x.dtype())
}
