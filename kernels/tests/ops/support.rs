//! What the tests share.

use burn::tensor::{DType, Device, Tensor};

/// Repeatable numbers in `[-1, 1)`, from a counter-based hash, on flex.
pub fn noise<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
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

/// Set to `1` where a missing adapter must be a failure, as in CI.
const REQUIRED: &str = "BURN_TITAN_REQUIRE_WGPU";

/// The devices that every kernel is tested on: flex, wgpu where an adapter is found (the test command
/// installs a software one, and requires it), and CUDA where the build and the machine have it.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::flex()];
    #[cfg(feature = "wgpu")]
    match burn_titan_kernels::device::wgpu() {
        Ok(device) => devices.push(device),
        Err(error) => {
            let required = std::env::var(REQUIRED).is_ok_and(|value| value == "1");
            assert!(!required, "{REQUIRED}=1, but {error}");
        }
    }
    #[cfg(feature = "cuda")]
    devices.extend(burn_titan_kernels::device::cuda());
    devices
}

/// The values as f64.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_into_vec::<f64>().unwrap()
}

/// The largest difference, relative to the largest value of `want` (or 0.1, where all are smaller).
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let mut scale = 0.1_f64;
    let mut worst = 0.0_f64;
    for (got, want) in got.iter().zip(want) {
        if got.is_finite() && want.is_finite() {
            scale = scale.max(want.abs());
            worst = worst.max((got - want).abs());
        } else {
            assert!(got.to_bits() == want.to_bits(), "{got} instead of {want}");
        }
    }
    worst / scale
}

/// Fails at the first value that differs.
pub fn assert_same(got: &[f64], want: &[f64], name: &str) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got == want, "{name}: {got} instead of {want} at {i}");
    }
}

/// An output and the gradients of the inputs.
type Results = (Vec<f64>, Vec<Vec<f64>>);

/// Runs `f` with autodiff on inputs of `dtype`, from a random gradient of the output whose values are
/// numbers of `seed_dtype`.
fn run<const N: usize, const D: usize>(
    inputs: &[Tensor<1>; N],
    dtype: DType,
    seed_dtype: DType,
    device: &Device,
    f: impl Fn([Tensor<1>; N]) -> Tensor<D>,
) -> Results {
    let leaf = |x: Tensor<1>| x.to_device(device).cast(dtype).autodiff().require_grad();
    let leaves = inputs.clone().map(leaf);
    let y = f(leaves.clone());
    let seed = noise(y.dims(), 99).cast(seed_dtype).cast(DType::F32);
    let seed = seed.to_device(device).cast(y.dtype()).autodiff();
    let grads = (y.clone() * seed).cast(DType::F32).sum().backward();
    let gradients = leaves.map(|x| values(x.grad(&grads).expect("a gradient for each input")));
    (values(y.inner()), gradients.into())
}

/// Compares the kernel in f32 on every device with the reference in f64: the output within
/// `tolerance`, gradients within five times as much, relative to the largest value.
pub fn check<const N: usize, const D: usize>(
    name: &str,
    inputs: [Tensor<1>; N],
    kernel: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    reference: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    tolerance: f64,
) {
    let want = run(&inputs, DType::F64, DType::F32, &Device::flex(), &reference);
    for device in devices() {
        let got = run(&inputs, DType::F32, DType::F32, &device, &kernel);
        compare(&format!("{name} on {device:?}"), &got, &want, [tolerance, 5.0 * tolerance]);
    }
}

/// The same in f16 and bf16 where the device has them. The inputs are numbers of that dtype, so that the
/// reference begins with the same. `roundings` is the number of times that a result is rounded
/// to the dtype on its way (each is off by at most the unit round-off: 2^-11 for f16, 2^-8 for bf16).
pub fn check_half<const N: usize, const D: usize>(
    name: &str,
    inputs: [Tensor<1>; N],
    kernel: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    reference: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    roundings: f64,
) {
    for (dtype, unit) in [(DType::F16, 2.0_f64.powi(-11)), (DType::BF16, 2.0_f64.powi(-8))] {
        let inputs = inputs.clone().map(|x| x.cast(dtype).cast(DType::F32));
        let want = run(&inputs, DType::F64, dtype, &Device::flex(), &reference);
        for device in devices() {
            if !device.supports_dtype(dtype) {
                continue;
            }
            let got = run(&inputs, dtype, dtype, &device, &kernel);
            let bound = roundings * unit;
            compare(&format!("{name} in {dtype:?} on {device:?}"), &got, &want, [bound, bound]);
        }
    }
}

fn compare(name: &str, got: &Results, want: &Results, [output, gradient]: [f64; 2]) {
    let d = distance(&got.0, &want.0);
    assert!(d <= output, "{name}: the output differs by {d:e}");
    for (i, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
        let d = distance(got, want);
        assert!(d <= gradient, "{name}: the gradient of input {i} differs by {d:e}");
    }
}
