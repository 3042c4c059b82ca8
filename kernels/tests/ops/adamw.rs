use burn::tensor::{DType, Device, Tensor};
use burn_titan_kernels::adamw::{AdamwStep, adamw, adamw_with_copy, reference};

use crate::support::{assert_same, devices, distance, noise, values};

const LENGTHS: [usize; 5] = [0, 1, 17, 1009, 70_001];

fn step(t: u64) -> AdamwStep {
    AdamwStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: t,
        gradient_scale: 0.7,
    }
}

/// A parameter and two moments of zero.
fn start(n: usize, device: &Device, dtype: DType) -> [Tensor<1>; 3] {
    let zero = || Tensor::zeros([n], (device, dtype));
    [noise([n], 1).to_device(device).cast(dtype), zero(), zero()]
}

fn gradient(n: usize, t: u64) -> Tensor<1> {
    noise([n], 10 + t)
}

/// Five steps of the reference in f64, with gradients rounded to `dtype`.
fn reference_state(n: usize, dtype: DType) -> [Vec<f64>; 3] {
    let mut state = start(n, &Device::flex(), DType::F64);
    for t in 1..=5 {
        let [p, m, v] = state;
        let gradient = gradient(n, t).cast(dtype).cast(DType::F64);
        state = reference::adamw(p, gradient, m, v, step(t));
    }
    state.map(values)
}

fn assert_close(got: [Tensor<1>; 3], want: &[Vec<f64>; 3], name: &str) {
    for (got, want) in got.into_iter().zip(want) {
        let d = distance(&values(got), want);
        assert!(d <= 1e-6, "{name} differs by {d:e}");
    }
}

#[test]
fn follows_the_reference_for_five_steps() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for n in LENGTHS {
            let want = reference_state(n, dtype);
            for device in devices().into_iter().filter(|device| device.supports_dtype(dtype)) {
                let mut state = start(n, &device, DType::F32);
                for t in 1..=5 {
                    let [p, m, v] = state;
                    let gradient = gradient(n, t).to_device(&device).cast(dtype);
                    state = adamw(p, gradient, m, v, step(t));
                }
                assert_close(state, &want, &format!("{n} with {dtype:?} on {device:?}"));
            }
        }
    }
}

/// The copy is the new parameter rounded, and the step is the same with and without it.
#[test]
fn the_copy_is_the_rounded_parameter() {
    for dtype in [DType::F16, DType::BF16] {
        for n in LENGTHS {
            for device in devices().into_iter().filter(|device| device.supports_dtype(dtype)) {
                let gradient = gradient(n, 1).to_device(&device);
                let [p, m, v] = start(n, &device, DType::F32);
                let plain = adamw(p, gradient.clone(), m, v, step(1)).map(values);
                let [p, m, v] = start(n, &device, DType::F32);
                let (state, copy) = adamw_with_copy(p, gradient, m, v, step(1), dtype);
                assert_eq!(copy.dtype(), dtype);
                let rounded = values(state[0].clone().cast(dtype));
                let name = format!("{n} in {dtype:?} on {device:?}");
                assert_same(&values(copy), &rounded, &name);
                assert_same(&state.map(values).concat(), &plain.concat(), &name);
            }
        }
    }
}

/// Tensors that are held elsewhere, and parts of larger ones, keep their values.
#[test]
fn what_others_hold_is_not_changed() {
    for device in devices() {
        let [p, m, v] = start(1009, &device, DType::F32);
        let kept = [p.clone(), m.clone(), v.clone()];
        let whole = noise([1009 + 40], 7).to_device(&device);
        let part = whole.clone().narrow(0, 21, 1009);
        let g = gradient(1009, 1).to_device(&device);
        let want = [p.clone(), m.clone(), v.clone()].map(values);
        let _ = adamw(p, g.clone(), m.clone(), v.clone(), step(1));
        let [new, ..] = adamw(part.clone(), g.clone(), m.clone(), v.clone(), step(1));
        let name = format!("{device:?}");
        assert_same(&kept.map(values).concat(), &want.concat(), &name);
        let [same, ..] = adamw(part.clone() * 1.0, g, m, v, step(1));
        assert_same(&values(new), &values(same), &name);
        assert_same(&values(part), &values(noise([1049], 7))[21..1030], &name);
        assert_same(&values(whole), &values(noise([1049], 7)), &name);
    }
}
