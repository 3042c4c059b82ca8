use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_titan_kernels::quantize::{Quantized, dequantize, quantize, reduce_quantized, reference};
use proptest::prelude::*;

use crate::support::{assert_same, devices, noise, values};

/// Half a step, and what f32 adds to it: three roundings of up to 127 steps (2^-24 each) before the whole
/// number is taken and one after it.
const BOUND: f64 = 0.5 + 4.0 * 127.0 / (1 << 24) as f64;

const LENGTHS: [usize; 6] = [0, 1, 17, 256, 1009, 70_001];

fn words(quantized: &Quantized) -> Vec<i32> {
    quantized.values.clone().into_data().convert::<i32>().try_into_vec().unwrap()
}

fn tensor(numbers: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(numbers.to_vec(), [numbers.len()]), device)
}

/// Each value is off by at most [`BOUND`] times the scale of its block; returns the bits.
fn check(x: &Tensor<1>, block: usize, name: &str) -> (Vec<i32>, Vec<f64>) {
    let length = x.dims()[0];
    let quantized = quantize(x.clone(), block);
    let (words, scales) = (words(&quantized), values(quantized.scales.clone()));
    assert_eq!(words.len() * 4, length.div_ceil(block) * block, "{name}");
    assert_eq!(scales.len(), length.div_ceil(block), "{name}");
    let got = values(dequantize(quantized, DType::F32));
    for (i, (x, got)) in values(x.clone()).into_iter().zip(got).enumerate() {
        let bound = BOUND * scales[i / block];
        assert!((x - got).abs() <= bound, "{name}: {got} instead of {x} at {i}");
    }
    (words, scales)
}

/// Also with as many bits the same as can be: all of them on flex and on a device that divides exactly.
#[test]
fn values_are_off_by_half_a_step() {
    for n in LENGTHS {
        for block in [4, 60, 256, 1024] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let x = noise([n], 5).cast(dtype);
                let want = check(&x, block, &format!("{n} by {block} of {dtype:?} on flex"));
                for device in devices().into_iter().filter(|d| d.supports_dtype(dtype)) {
                    let name = format!("{n} by {block} of {dtype:?} on {device:?}");
                    let x = noise([n], 5).to_device(&device).cast(dtype);
                    let got = check(&x, block, &name);
                    assert!(got == want, "{name}: not the bits of flex");
                }
            }
        }
    }
}

#[test]
fn equals_the_reference_in_f64() {
    let x = noise([1009], 8);
    let (numbers, scales) = reference::quantize(x.clone().cast(DType::F64), 64);
    let want = values(reference::dequantize(numbers, scales.clone(), 1009));
    let step = values(scales);
    for device in devices() {
        let got = values(dequantize(quantize(x.clone().to_device(&device), 64), DType::F32));
        let off = got.iter().zip(&want).enumerate().filter(|(i, (a, b))| {
            let difference = (*a - *b).abs() / step[i / 64];
            assert!(difference < 1.001, "{a} instead of {b} at {i} on {device:?}");
            difference > 0.5
        });
        // Another whole number only where the exact value is within f32 of a tie.
        assert!(off.count() <= 1, "{device:?}");
    }
}

#[test]
fn words_hold_four_numbers_and_ties_go_to_the_even_one() {
    let numbers = [127.0, -127.0, 0.5, 1.5, -0.5, -1.5, 2.5, 63.5, -3.0];
    for device in devices() {
        let quantized = quantize(tensor(&numbers, &device), 12);
        let bytes: Vec<i8> =
            words(&quantized).iter().flat_map(|word| word.to_le_bytes()).map(|b| b as i8).collect();
        assert_eq!(bytes, [127, -127, 0, 2, 0, -2, 2, 64, -3, 0, 0, 0], "{device:?}");
        assert_eq!(values(quantized.scales), [1.0], "{device:?}");
    }
}

#[test]
fn zeros_and_numbers_that_are_too_small_give_zeros() {
    for device in devices() {
        for tiny in [0.0, 1e-40, -126.0 * f32::MIN_POSITIVE] {
            let quantized = quantize(tensor(&[tiny; 5], &device), 4);
            assert_same(&values(quantized.scales.clone()), &[0.0; 2], &format!("{device:?}"));
            assert_eq!(words(&quantized), [0, 0], "{device:?}");
            let got = values(dequantize(quantized, DType::F32));
            assert_same(&got, &[0.0; 5], &format!("{tiny} on {device:?}"));
        }
    }
}

/// NaN and infinity spoil their block, and no other.
#[test]
fn values_that_are_not_finite_are_not_lost() {
    for device in devices() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = [1.0_f32; 24];
            numbers[11] = bad;
            let quantized = quantize(tensor(&numbers, &device), 8);
            let summed = reduce(&[quantized.clone(), quantized.clone()], 1.0);
            for (quantized, one) in [(quantized, 1.0), (summed, 2.0)] {
                let got = values(dequantize(quantized, DType::F32));
                assert!(got[8..16].iter().all(|x| x.is_nan()), "{bad} on {device:?}");
                let rest = [&got[..8], &got[16..]].concat();
                assert!(rest.iter().all(|x| (x - one).abs() < 1e-6), "{bad} on {device:?}");
            }
        }
    }
}

fn reduce(parts: &[Quantized], scale: f32) -> Quantized {
    let rows = |t: Tensor<1>| t.unsqueeze_dim::<2>(0);
    let words = parts.iter().map(|q| q.values.clone().unsqueeze_dim::<2>(0)).collect();
    let words: Tensor<2, Int> = Tensor::cat(words, 0);
    let scales = Tensor::cat(parts.iter().map(|q| rows(q.scales.clone())).collect(), 0);
    reduce_quantized(words, scales, parts[0].length, parts[0].block, scale)
}

#[test]
fn the_sum_is_that_of_the_values_within_half_a_step() {
    for (n, ranks, block) in [(1, 1, 4), (17, 3, 8), (1009, 8, 256), (70_001, 4, 256)] {
        let flex = reduce_on(n, ranks, block, &Device::flex());
        for device in devices() {
            let got = reduce_on(n, ranks, block, &device);
            assert!(got == flex, "{n} by {block} from {ranks} on {device:?}: not the bits of flex");
        }
    }
}

fn reduce_on(n: usize, ranks: usize, block: usize, device: &Device) -> (Vec<i32>, Vec<f64>) {
    let name = format!("{n} by {block} from {ranks} on {device:?}");
    let part = |rank| quantize(noise([n], rank as u64).to_device(device), block);
    let parts: Vec<_> = (0..ranks).map(part).collect();
    let mut want = vec![0.0; n];
    for part in &parts {
        let part = values(dequantize(part.clone(), DType::F32));
        want.iter_mut().zip(part).for_each(|(sum, x)| *sum += x / ranks as f64);
    }
    let sum = reduce(&parts, 1.0 / ranks as f32);
    let (words, scales) = (words(&sum), values(sum.scales.clone()));
    for (i, (got, want)) in values(dequantize(sum, DType::F32)).into_iter().zip(want).enumerate() {
        // The f32 sums are off by up to two roundings a rank.
        let bound = BOUND * scales[i / block] + ranks as f64 * 2.0_f64.powi(-23);
        assert!((got - want).abs() <= bound, "{name}: {got} instead of {want} at {i}");
    }
    (words, scales)
}

#[test]
fn dequantised_halves_are_the_rounded_values() {
    for dtype in [DType::F16, DType::BF16] {
        for device in devices().into_iter().filter(|device| device.supports_dtype(dtype)) {
            let quantized = quantize(noise([1009], 2).to_device(&device), 64);
            let want = values(dequantize(quantized.clone(), DType::F32).cast(dtype));
            let got = dequantize(quantized, dtype);
            assert_eq!(got.dtype(), dtype);
            assert_same(&values(got), &want, &format!("{dtype:?} on {device:?}"));
        }
    }
}

#[test]
#[should_panic(expected = "a block has a positive multiple of 4 elements, not 6")]
fn a_block_of_part_of_a_word_is_refused() {
    let _ = quantize(noise([3], 0), 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_magnitude_and_length(
        n in 0_usize..300,
        quarter in 1_usize..40,
        exponent in -100_i32..120,
        seed in 0_u64..1000,
    ) {
        for device in devices() {
            let x = noise([n], seed).to_device(&device) * 2.0_f32.powi(exponent);
            check(&x, 4 * quarter, &format!("{n} by {} times 2^{exponent}", 4 * quarter));
        }
    }
}
