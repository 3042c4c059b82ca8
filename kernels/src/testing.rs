//! What the kernels' tests share.

use burn::tensor::{Device, Tensor};

/// Repeatable numbers in `[-1, 1)`, from a counter-based hash.
pub(crate) fn noise<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n as u64)
        .map(|i| {
            let mut x = i.wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x ^= x >> 31;
            x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
            x ^= x >> 32;
            (x >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape(shape)
}

/// The largest difference, relative to the largest value of `want` (or 0.1, where all are smaller).
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0.1_f32, |m, x| m.max(x.abs()));
    got.iter().zip(want).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

pub(crate) fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}

/// The devices that every kernel is tested on: flex, and wgpu where an adapter is found (the test
/// command installs a software one).
pub(crate) fn devices() -> Vec<Device> {
    let mut devices = vec![Device::flex()];
    #[cfg(feature = "wgpu")]
    match crate::device::wgpu() {
        Ok(device) => devices.push(device),
        Err(_) => {}
    }
    devices
}

/// Runs both functions with autodiff and compares outputs and the gradients of all inputs, from a
/// random gradient of the output: `native` on every device of [`devices`], `reference` on flex.
pub(crate) fn assert_same_gradients<const N: usize, const D: usize>(
    inputs: [Tensor<1>; N],
    native: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    reference: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    tolerance: f32,
) {
    let run = |device: &Device, f: &dyn Fn([Tensor<1>; N]) -> Tensor<D>| {
        let leaf = |x: Tensor<1>| x.to_device(device).autodiff().require_grad();
        let leaves = inputs.clone().map(leaf);
        let y = f(leaves.clone());
        let seed = noise(y.dims(), 99).to_device(device).autodiff();
        let grads = (y.clone() * seed).sum().backward();
        let gradients = leaves.map(|x| values(x.grad(&grads).expect("a gradient for each input")));
        (values(y.inner()), gradients)
    };
    let want = run(&Device::flex(), &reference);
    for device in devices() {
        let got = run(&device, &native);
        let d = distance(&got.0, &want.0);
        assert!(d < tolerance, "{device:?}: output differs by {d:e}");
        for (i, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
            let d = distance(got, want);
            assert!(d < tolerance * 5.0, "{device:?}: gradient of input {i} differs by {d:e}");
        }
    }
}
