use burn::tensor::{DType, Tensor};
use burn_titan_kernels::norm::{reference, sum_of_squares};

use crate::support::{devices, noise, values};

/// f32 sums of up to 4,096 squares a part: far below 1e-6 of a sum of positive numbers.
fn assert_close(x: Tensor<1>, want: f64, name: &str) {
    let got = values(sum_of_squares(x))[0];
    assert!((got - want).abs() <= 1e-6 * want, "{name}: {got} instead of {want}");
}

#[test]
fn equals_the_f64_sum_at_odd_sizes() {
    for n in [0, 1, 17, 257, 4097, 70_001, 5_000_011] {
        let x = noise([n], 5);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let want = values(reference::sum_of_squares(x.clone().cast(dtype).cast(DType::F64)))[0];
            for device in devices().into_iter().filter(|device| device.supports_dtype(dtype)) {
                let x = x.clone().to_device(&device).cast(dtype);
                assert_close(x, want, &format!("{n} of {dtype:?} on {device:?}"));
            }
        }
    }
}

#[test]
fn inputs_need_not_be_contiguous() {
    let x = noise([37, 61], 2);
    let want = values(reference::sum_of_squares(x.clone().cast(DType::F64).narrow(1, 3, 20)))[0];
    for device in devices() {
        let got = values(sum_of_squares(x.clone().to_device(&device).narrow(1, 3, 20).transpose()));
        assert!((got[0] - want).abs() <= 1e-6 * want, "{device:?}");
    }
}

/// A step with such a norm must be seen and refused.
#[test]
fn a_value_that_is_not_finite_shows() {
    for device in devices() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut numbers = vec![1.0_f32; 5000];
            numbers[4321] = bad;
            let x = Tensor::<1>::from_floats(numbers.as_slice(), &device);
            assert!(!values(sum_of_squares(x))[0].is_finite(), "{bad} on {device:?}");
        }
    }
}
