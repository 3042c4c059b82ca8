//! How far a result is from the reference's.

use std::cmp::Ordering;

use burn::tensor::{DType, Device, Int, Tensor};

use super::Checker;
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::device::is_cuda;

/// How far one result of a kernel is from the reference, and may be.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Which result.
    pub of: &'static str,
    /// The largest difference, relative to the largest value (see [`distance`]).
    pub error: f64,
    /// The most that `error` may be.
    pub bound: f64,
}

impl Difference {
    /// Whether the result is right.
    pub fn is_within(&self) -> bool {
        self.error <= self.bound
    }

    /// Orders by how much of its bound a difference takes.
    pub fn by_share(&self, other: &Self) -> Ordering {
        let share = |it: &Self| match it.error {
            0.0 => 0.0,
            // What is no number is the worst.
            error if error.is_nan() => f64::INFINITY,
            error => error / it.bound,
        };
        share(self).total_cmp(&share(other))
    }
}

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

/// Whole numbers on the device of a tensor of floats.
pub fn whole_numbers<const D: usize>(
    numbers: &[i64],
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::<1, Int>::from_data(numbers, device).reshape(shape)
}

/// The values as f64.
///
/// # Panics
/// If the device failed.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_into_vec::<f64>().expect("converted to f64")
}

/// The largest difference, relative to the largest value of `want` (or 0.1, where all are smaller). Infinite where
/// there are more or fewer values, or one is finite in one of both alone.
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let (mut scale, mut worst) = (0.1_f64, 0.0_f64);
    for (got, want) in got.iter().zip(want) {
        if got.is_finite() && want.is_finite() {
            scale = scale.max(want.abs());
            worst = worst.max((got - want).abs());
        } else if got.to_bits() != want.to_bits() {
            return f64::INFINITY;
        }
    }
    worst / scale
}

/// The largest error of rounding to the format once, relative to the number.
pub fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
        _ => 2.0_f64.powi(-24),
    }
}

/// As [`unit`], of TF32: it has as many bits as f16.
pub const TF32: f64 = 1.0 / 2048.0;

/// What an operation's results may be off.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// The output's in f32; that of gradients is five times as much.
    pub single: f64,
    /// How often a result is rounded to f16 or bf16 on its way, where it is computed in them.
    pub roundings: f64,
    /// Whether it is made of Burn's matrix products, which some devices compute in TF32 instead of f32.
    pub products: bool,
}

impl Bounds {
    /// Of the output and of gradients.
    fn of(self, dtype: DType, device: &Device) -> [f64; 2] {
        match dtype {
            DType::F32 if self.products && is_cuda(device) => [self.roundings * TF32; 2],
            DType::F32 => [self.single, 5.0 * self.single],
            dtype => [self.roundings * unit(dtype); 2],
        }
    }
}

/// An operation on flat inputs.
pub trait Operation<const N: usize, const D: usize>: Fn([Tensor<1>; N]) -> Tensor<D> {}
impl<const N: usize, const D: usize, F: Fn([Tensor<1>; N]) -> Tensor<D>> Operation<N, D> for F {}

impl Checker {
    /// Compares an operation and its gradients with the reference, in every format of the device. The reference
    /// begins with the same numbers of that format, and computes in f64.
    pub fn check_differentiable<const N: usize, const D: usize>(
        &mut self,
        (kernel, case): (&'static str, &str),
        inputs: [(&'static str, Tensor<1>); N],
        operation: impl Operation<N, D>,
        reference: impl Operation<N, D>,
        bounds: Bounds,
    ) -> Result<(), TrainError> {
        let names = inputs.each_ref().map(|(name, _)| *name);
        for dtype in self.dtypes.clone() {
            let inputs = inputs.clone().map(|(_, x)| x.cast(dtype).cast(DType::F32));
            let [output, gradient] = bounds.of(dtype, &self.device);
            self.check(kernel, case, dtype, |device| {
                let want = run(&inputs, DType::F64, dtype, &Device::flex(), &reference);
                let got = run(&inputs, dtype, dtype, device, &operation);
                let names = std::iter::once("output").chain(names);
                let bounds = std::iter::once(output).chain([gradient; N]);
                let pairs = names.zip(bounds).zip(got.iter().zip(&want));
                pairs
                    .map(|((of, bound), (got, want))| Difference {
                        of,
                        error: distance(got, want),
                        bound,
                    })
                    .collect()
            })?;
        }
        Ok(())
    }
}

/// The output, and the gradients of the inputs, from a random gradient of the output whose values are numbers
/// of `seed_dtype`.
fn run<const N: usize, const D: usize>(
    inputs: &[Tensor<1>; N],
    dtype: DType,
    seed_dtype: DType,
    device: &Device,
    operation: &impl Operation<N, D>,
) -> Vec<Vec<f64>> {
    let leaf = |x: Tensor<1>| x.to_device(device).cast(dtype).autodiff().require_grad();
    let leaves = inputs.clone().map(leaf);
    let output = operation(leaves.clone());
    let seed = noise(output.dims(), 99).cast(seed_dtype).cast(DType::F32);
    let seed = seed.to_device(device).cast(output.dtype()).autodiff();
    let gradients = (output.clone() * seed).cast(DType::F32).sum().backward();
    let gradients = leaves.into_iter().map(|x| x.grad(&gradients).map(values).unwrap_or_default());
    std::iter::once(values(output.inner())).chain(gradients).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance(&[1.0, -4.0], &[1.0, -2.0]), 1.0);
        assert_eq!(distance(&[1e-3, 0.0], &[0.0, 0.0]), 1e-2);
        assert_eq!(distance(&[f64::NEG_INFINITY], &[f64::NEG_INFINITY]), 0.0);
        for (got, want) in [(&[1.0][..], &[][..]), (&[f64::NAN], &[1.0]), (&[1.0], &[f64::NAN])] {
            assert_eq!(distance(got, want), f64::INFINITY);
        }
    }
}
