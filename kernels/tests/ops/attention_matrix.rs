//! The attention kernels for matrix units, with ordinary units in their place: all of their code but the
//! few lines that only matrix units can run.

use burn::tensor::{DType, Device, Int, Tensor};
use burn_titan_kernels::attention::{
    Attention, AttentionMask, Scores, Tier, attention, attention_backward, reference, with_tier,
};

use crate::attention::Case;
use crate::support::{check_half, devices, distance, noise, values};

const EMULATED: Tier = Tier::Emulated { patience: 5.5 };

/// The unit round-off of f16.
const UNIT: f64 = 1.0 / 2048.0;

/// Roundings on the way to a result. Output: `P`, itself. Gradients: the forward's output, `P` or `dS`,
/// themselves.
const ROUNDINGS: f64 = 3.0;

impl Case {
    fn check_matrix(&self) {
        with_tier(EMULATED, || {
            check_half(
                &format!("{self:?}, emulated"),
                self.inputs(),
                |inputs| self.run(attention, inputs).output,
                |inputs| self.run(reference::attention, inputs).output,
                ROUNDINGS,
            );
        });
    }
}

/// The WebGPU device, if there is one.
fn cube_device() -> Option<Device> {
    devices().into_iter().nth(1)
}

#[test]
fn odd_sizes_and_shared_heads() {
    for sizes in [
        [1, 1, 1, 1, 16],
        [2, 4, 2, 67, 16],
        [1, 6, 1, 131, 16],
        [1, 2, 1, 150, 64],
        [1, 2, 1, 70, 128],
        [1, 2, 1, 40, 80],
    ] {
        Case::causal(sizes).check_matrix();
    }
}

#[test]
fn documents_windows_and_caps() {
    let base = Case::causal([2, 4, 2, 140, 16]);
    for documents in [vec![1], vec![3, 1, 70, 1, 40], vec![64, 76]] {
        Case { documents, ..base.clone() }.check_matrix();
    }
    for window in [1, 33, 1000] {
        Case { window: Some(window), ..base.clone() }.check_matrix();
    }
    Case { softcap: Some(2.5), ..base.clone() }.check_matrix();
    Case { softcap: Some(50.0), window: Some(33), documents: vec![60, 1], ..base }.check_matrix();
}

#[test]
fn rows_that_see_nothing() {
    let Some(device) = cube_device() else { return };
    let [batch, heads, queries, keys, head_dim] = [2, 2, 70, 140, 16];
    let int = |values: Vec<i32>| {
        Tensor::<1, Int>::from_data(values.as_slice(), &device).reshape([batch, queries])
    };
    // Every third query sees nothing; others see up to 50 keys somewhere in the middle.
    let rows = || (0..(batch * queries) as i32).map(|i| (i, i % 3 == 0));
    let first = rows().map(|(i, _)| i % 90).collect();
    let end = rows().map(|(i, empty)| if empty { i % 90 } else { i % 90 + 1 + i % 50 });
    let mask = AttentionMask::new(int(first), int(end.collect()));
    let x = |seq, seed| half([batch, heads, seq, head_dim], seed, &device);
    let (q, k, v) = (x(queries, 1), x(keys, 2), x(keys, 3));
    let scores = Scores::scaled(head_dim);
    let want = reference::attention(q.clone(), k.clone(), v.clone(), &mask, scores);
    with_tier(EMULATED, || {
        let got = attention(q.clone(), k.clone(), v.clone(), &mask, scores);
        let d = distance(&values(got.output.clone()), &values(want.output));
        assert!(d < 2.0 * UNIT, "the output differs by {d:e}");
        // No rounding to f16 comes before it.
        let sums = values(got.log_sum_exp.clone());
        for (got, want) in sums.iter().zip(values(want.log_sum_exp)) {
            assert!(*got == want || (got - want).abs() < 1e-5, "{got} instead of {want}");
        }
        assert!(sums.contains(&f64::NEG_INFINITY));
        same_gradients([q, k, v], &mask, got, x(queries, 4));
    });
}

/// Scores that grow along the keys by far more than f16 weights can span, so that rows rescale at
/// different times; then any patience gives the same output.
#[test]
fn rescaling_late_or_at_once_is_the_same() {
    let Some(device) = cube_device() else { return };
    let [heads, seq, head_dim] = [2, 200, 16];
    let x = |seed| half([1, heads, seq, head_dim], seed, &device);
    let ramp = Tensor::<1, Int>::arange(0..seq as i64, &device).float().reshape([1, 1, seq, 1]);
    let q = x(1);
    let k = (x(2).cast(DType::F32) * (ramp + 1.0) * 0.1).cast(DType::F16);
    let v = x(3);
    let mask = AttentionMask::causal(1, seq, &device);
    let scores = Scores { scale: 2.0, softcap: None };
    let want = reference::attention(q.clone(), k.clone(), v.clone(), &mask, scores);
    let (want, want_sums) = (values(want.output), values(want.log_sum_exp));
    for patience in [0.0, 1.0, 5.5, 11.0] {
        let got = with_tier(Tier::Emulated { patience }, || {
            attention(q.clone(), k.clone(), v.clone(), &mask, scores)
        });
        let d = distance(&values(got.output), &want);
        assert!(d < 2.0 * UNIT, "patience {patience}: the output differs by {d:e}");
        let d = distance(&values(got.log_sum_exp), &want_sums);
        assert!(d < 1e-6, "patience {patience}: the log-sum-exp differs by {d:e}");
    }
}

/// Rows of a tensor of `[batch, seq, heads, head_dim]`, and rows that cannot be read in whole vectors.
#[test]
fn inputs_need_not_be_contiguous() {
    let Some(device) = cube_device() else { return };
    let [heads, seq, head_dim] = [3, 50, 16];
    let mask = AttentionMask::causal(1, seq, &device);
    let scores = Scores::scaled(head_dim);
    let swapped = |seed| half([1, seq, heads, head_dim], seed, &device).swap_dims(1, 2);
    let odd = |seed| {
        let padded = half([1, heads, seq, head_dim + 1], seed, &device);
        padded.slice([0..1, 0..heads, 0..seq, 0..head_dim])
    };
    for inputs in [[1, 2, 3].map(swapped), [1, 2, 3].map(odd)] {
        let [q, k, v] = inputs;
        let want = reference::attention(q.clone(), k.clone(), v.clone(), &mask, scores);
        let inputs = [q.clone(), k.clone(), v.clone()];
        let got = with_tier(EMULATED, || attention(q, k, v, &mask, scores));
        let d = distance(&values(got.output.clone()), &values(want.output));
        assert!(d < 2.0 * UNIT, "the output differs by {d:e}");
        same_gradients(inputs.clone(), &mask, got.clone(), swapped(4));
        same_gradients(inputs, &mask, got, odd(4));
    }
}

/// The gradients are those of the plain kernels, which the tests of `attention` compare with f64: each
/// side has roundings of its own.
fn same_gradients(
    [q, k, v]: [Tensor<4>; 3],
    mask: &AttentionMask,
    forward: Attention,
    gradient: Tensor<4>,
) {
    let scores = Scores::scaled(q.dims()[3]);
    let run = |tier| {
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        with_tier(tier, || {
            attention_backward(q, k, v, mask, scores, forward.clone(), gradient.clone())
        })
    };
    for (got, want) in run(EMULATED).into_iter().zip(run(Tier::Plain)) {
        let d = distance(&values(got), &values(want));
        assert!(d < 2.0 * ROUNDINGS * UNIT, "a gradient differs by {d:e}");
    }
}

/// What the device itself chooses: matrix units where it has them, else the plain kernels.
#[test]
fn the_fastest_tier_is_right_too() {
    let case = Case::causal([1, 4, 2, 150, 64]);
    check_half(
        &format!("{case:?}"),
        case.inputs(),
        |inputs| case.run(attention, inputs).output,
        |inputs| case.run(reference::attention, inputs).output,
        ROUNDINGS,
    );
}

/// The same bits every time; other bits than the plain kernels, which do not round `P`: so each tier
/// runs where it is asked for, in the backward too.
#[test]
fn a_tier_is_chosen_and_repeats_its_bits() {
    let Some(device) = cube_device() else { return };
    let case = Case::causal([1, 4, 1, 200, 16]);
    let run = |tier| {
        with_tier(tier, || {
            let leaf = |x: Tensor<1>| x.to_device(&device).cast(DType::F16).autodiff();
            let leaves = case.inputs().map(|x| leaf(x).require_grad());
            let output = case.run(attention, leaves.clone()).output;
            let grads = output.clone().cast(DType::F32).sum().backward();
            let gradients = leaves.map(|x| values(x.grad(&grads).unwrap()));
            (values(output.inner()), gradients)
        })
    };
    let (output, gradients) = run(EMULATED);
    assert_eq!((output.clone(), gradients.clone()), run(EMULATED));
    let (plain, plain_gradients) = run(Tier::Plain);
    assert_ne!(output, plain);
    for (emulated, plain) in gradients.iter().zip(&plain_gradients) {
        assert_ne!(emulated, plain);
    }
}

fn half<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    noise(shape, seed).to_device(device).cast(DType::F16)
}
