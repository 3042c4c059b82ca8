use burn_titan_kernels::swiglu::{reference, swiglu};

use crate::support::{check, check_half, noise};

#[test]
fn equals_the_reference_at_odd_sizes() {
    for n in [1, 17, 5000, 40_001] {
        check(
            &format!("{n}"),
            [noise([n], 0) * 8.0, noise([n], 1)],
            |[gate, up]| swiglu(gate, up),
            |[gate, up]| reference::swiglu(gate, up),
            1e-6,
        );
    }
}

#[test]
fn half_precision_rounds_once() {
    check_half(
        "5000",
        [noise([5000], 0) * 8.0, noise([5000], 1)],
        |[gate, up]| swiglu(gate, up),
        |[gate, up]| reference::swiglu(gate, up),
        1.0,
    );
}

#[test]
fn large_gates_are_the_identity_or_nothing() {
    check(
        "large gates",
        [noise([64], 0) * 200.0, noise([64], 1)],
        |[gate, up]| swiglu(gate, up),
        |[gate, up]| reference::swiglu(gate, up),
        1e-6,
    );
}

#[test]
fn inputs_need_not_be_contiguous() {
    check(
        "gate transposed",
        [noise([6 * 35], 0) * 4.0, noise([6 * 35], 1)],
        |[gate, up]| swiglu(gate.reshape([6, 35]).transpose(), up.reshape([35, 6])),
        |[gate, up]| reference::swiglu(gate.reshape([6, 35]).transpose(), up.reshape([35, 6])),
        1e-6,
    );
}
