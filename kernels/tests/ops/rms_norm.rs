use burn_titan_kernels::rms_norm::{reference, rms_norm};

use crate::support::{check, check_half, noise};

const SHAPES: [[usize; 3]; 5] = [[1, 1, 1], [2, 3, 16], [1, 67, 37], [3, 50, 64], [1, 3, 700]];

#[test]
fn equals_the_reference_at_odd_sizes() {
    for shape in SHAPES {
        check(
            &format!("{shape:?}"),
            [noise(shape, 0).reshape([-1]), noise([shape[2]], 1) + 1.0],
            |[x, w]| rms_norm(x.reshape(shape), w, 1e-5),
            |[x, w]| reference::rms_norm(x.reshape(shape), w, 1e-5),
            1e-6,
        );
    }
}

#[test]
fn half_precision_rounds_once() {
    for shape in SHAPES {
        check_half(
            &format!("{shape:?}"),
            [noise(shape, 0).reshape([-1]), noise([shape[2]], 1) + 1.0],
            |[x, w]| rms_norm(x.reshape(shape), w, 1e-5),
            |[x, w]| reference::rms_norm(x.reshape(shape), w, 1e-5),
            1.0,
        );
    }
}

#[test]
fn inputs_need_not_be_contiguous() {
    check(
        "transposed",
        [noise([6 * 35], 0), noise([6], 1) + 1.0],
        |[x, w]| rms_norm(x.reshape([6, 35]).transpose(), w, 1e-5),
        |[x, w]| reference::rms_norm(x.reshape([6, 35]).transpose(), w, 1e-5),
        1e-6,
    );
}
