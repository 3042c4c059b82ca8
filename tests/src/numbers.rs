//! Seeded noise, tensors from slices and back, comparisons.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_titan_kernels::inject_gradient;

/// Repeatable numbers in `[-1, 1)`, from a counter-based hash.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let number = |i: u64| {
        let mut x = i.wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count as u64).map(number).collect()
}

/// A tensor on flex.
pub fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

/// Flex, and wgpu where there is an adapter (the wgpu test requires one in CI).
pub fn devices() -> Vec<Device> {
    std::iter::once(Device::flex()).chain(burn_titan_kernels::device::wgpu()).collect()
}

/// A tensor of integers on flex.
pub fn int_tensor<const D: usize>(values: &[i64], shape: [usize; D]) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

/// The values of a float tensor, row-major.
///
/// # Panics
/// If they cannot be read.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec().expect("floats")
}

/// Values in f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// A `[rows, columns]` matrix, row-major, as `[columns, rows]`.
pub fn transposed<T: Copy>(matrix: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    assert_eq!(matrix.len(), rows * columns);
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}

/// The largest absolute difference; infinite if one is not a number.
pub fn worst<A: Into<f64> + Copy, B: Into<f64> + Copy>(got: &[A], want: &[B]) -> f64 {
    assert_eq!(got.len(), want.len());
    let distance = |(a, b): (&A, &B)| {
        let distance = ((*a).into() - (*b).into()).abs();
        if distance.is_nan() { f64::INFINITY } else { distance }
    };
    got.iter().zip(want).map(distance).fold(0.0, f64::max)
}

/// [`worst`] as a share of the largest absolute value of `want`.
pub fn relative<A: Into<f64> + Copy, B: Into<f64> + Copy>(got: &[A], want: &[B]) -> f64 {
    let largest = want.iter().map(|x| (*x).into().abs()).fold(0.0, f64::max);
    worst(got, want) / largest
}

/// The bits of values, for comparisons that allow no difference.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The output of `f` and the gradients of its inputs, which are flat and in `dtype`, when the output's
/// gradient is `gradient`.
///
/// # Panics
/// If an input takes no part.
pub fn forward_backward<const N: usize, const D: usize>(
    inputs: [&[f32]; N],
    gradient: &[f32],
    dtype: DType,
    f: impl FnOnce([Tensor<1>; N]) -> Tensor<D>,
) -> (Vec<f32>, [Vec<f32>; N]) {
    forward_backward_on(&Device::flex(), inputs, gradient, dtype, f)
}

/// [`forward_backward`] on a device.
pub fn forward_backward_on<const N: usize, const D: usize>(
    device: &Device,
    inputs: [&[f32]; N],
    gradient: &[f32],
    dtype: DType,
    f: impl FnOnce([Tensor<1>; N]) -> Tensor<D>,
) -> (Vec<f32>, [Vec<f32>; N]) {
    let flat = |x: &[f32]| tensor(x, [x.len()]).to_device(device).cast(dtype);
    let leaves = inputs.map(|x| flat(x).autodiff().require_grad());
    let output = f(leaves.clone());
    let gradient = tensor(gradient, output.dims()).to_device(device).cast(output.dtype());
    let gradients = inject_gradient(output.clone(), gradient).backward();
    let gradients = leaves.map(|x| values(x.grad(&gradients).expect("a gradient for each input")));
    (values(output.inner()), gradients)
}
