use burn::tensor::Tensor;
use burn_titan_kernels::rope::{reference, rope};

use crate::support::{check, check_half, noise};

const SHAPES: [[usize; 4]; 4] = [[1, 1, 1, 2], [2, 7, 3, 6], [1, 67, 2, 24], [2, 130, 1, 64]];

/// Cosines and sines for `x`, `[batch, seq, heads, head_dim]`, on its device.
fn tables(x: &Tensor<4>) -> [Tensor<3>; 2] {
    let [batch, seq, _, head_dim] = x.dims();
    let angles = noise([batch, seq, head_dim / 2], 3) * 3.0;
    [angles.clone().cos(), angles.sin()].map(|table| table.to_device(&x.device().inner()))
}

fn kernel(x: Tensor<4>) -> Tensor<4> {
    let [cos, sin] = tables(&x);
    rope(x, cos, sin)
}

fn plain(x: Tensor<4>) -> Tensor<4> {
    let [cos, sin] = tables(&x).map(|table| table.autodiff());
    reference::rope(x, cos, sin)
}

#[test]
fn equals_the_reference_at_odd_sizes() {
    for shape in SHAPES {
        check(
            &format!("{shape:?}"),
            [noise(shape, 0).reshape([-1])],
            |[x]| kernel(x.reshape(shape)),
            |[x]| plain(x.reshape(shape)),
            1e-6,
        );
    }
}

#[test]
fn half_precision_rounds_once() {
    for shape in SHAPES {
        check_half(
            &format!("{shape:?}"),
            [noise(shape, 0).reshape([-1])],
            |[x]| kernel(x.reshape(shape)),
            |[x]| plain(x.reshape(shape)),
            1.0,
        );
    }
}

/// Attention's gradients come with heads before tokens, and the result goes there so.
#[test]
fn inputs_need_not_be_contiguous() {
    let [batch, heads, seq, head_dim] = [2, 4, 6, 8];
    let permutations =
        [[0, 2, 1, 3], [0, 3, 1, 2], [2, 0, 3, 1]].map(|p| (p, format!("permuted {p:?}")));
    for (axes, name) in permutations {
        let shape = [batch, heads, seq, head_dim];
        check(
            &name,
            [noise(shape, 0).reshape([-1])],
            |[x]| kernel(x.reshape(shape).permute(axes)).permute(axes),
            |[x]| plain(x.reshape(shape).permute(axes)).permute(axes),
            1e-6,
        );
    }
}
