//! RoPE on the CPU, in one pass.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_flex::FlexTensor;

use crate::flex::{F32View, float_tensor, for_rows, simd_fn};

/// Where the heads of `x` are: head `h` of token `t` of sequence `b` begins at
/// `b * batch + t * token + h * head`.
#[derive(Clone, Copy)]
struct Heads {
    batch: usize,
    token: usize,
    head: usize,
    seq: usize,
    heads: usize,
    head_dim: usize,
}

/// Rotates forward (`direction` 1) or back (-1).
pub(super) fn rotate(
    x: &FlexTensor,
    cos: &FlexTensor,
    sin: &FlexTensor,
    direction: f32,
) -> FlexTensor {
    let [_, seq, heads, head_dim] = x.shape().dims();
    let (cos, sin) = (F32View::new(cos), F32View::new(sin));
    let (width, half) = (heads * head_dim, head_dim / 2);
    let mut output = vec![0.0; x.shape().num_elements()];
    let mut rotate = |input: &[f32], at: Heads| {
        for_rows(&mut output, width, |first, rows| {
            let (cos, sin) = (&cos[first * half..], &sin[first * half..]);
            rotate_rows(rows, input, at, cos, sin, first, direction);
        });
    };
    // Gradients come from attention with heads before tokens: read there, not copied.
    let layout = x.layout();
    match layout.strides().iter().map(|s| usize::try_from(*s)).collect::<Result<Vec<_>, _>>() {
        Ok(strides) if x.dtype() == DType::F32 && strides[3] == 1 => {
            let [batch, token, head] = [strides[0], strides[1], strides[2]];
            let input = &x.storage::<f32>()[layout.start_offset()..];
            rotate(input, Heads { batch, token, head, seq, heads, head_dim });
        }
        _ => {
            let (batch, token, head) = (seq * width, width, head_dim);
            rotate(&F32View::new(x), Heads { batch, token, head, seq, heads, head_dim });
        }
    }
    float_tensor(output, x.shape(), x.dtype())
}

simd_fn! {
    fn rotate_rows(
        y: &'a mut [f32],
        x: &'a [f32],
        at: Heads,
        cos: &'a [f32],
        sin: &'a [f32],
        first: usize,
        direction: f32,
    ) -> () {
        let (head_dim, half) = (at.head_dim, at.head_dim / 2);
        let width = at.heads * head_dim;
        let tables = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (i, (y, (cos, sin))) in y.chunks_exact_mut(width).zip(tables).enumerate() {
            let token = first + i;
            let start = token / at.seq * at.batch + token % at.seq * at.token;
            for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
                let x = &x[start + head * at.head..][..head_dim];
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
