//! The operations on flat parameters and gradients, what ranks exchange, and the loss over a cut vocabulary.

use burn::tensor::{DType, Device, Int, Tensor};
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::adamw::{self, AdamwStep, adamw_with_copy};
use burn_titan_kernels::cross_entropy::{self, vocabulary_gradients, vocabulary_statistics};
use burn_titan_kernels::device::is_cuda;
use burn_titan_kernels::quantize::{self, Quantized, dequantize, reduce_quantized};
use burn_titan_kernels::{bucket, norm, pack, reduce, reduce_chunks, sum_of_squares, unpack};

use super::Checker;
use super::compare::{Difference, TF32, distance, noise, unit, values, whole_numbers};
use super::fused::targets;

const LENGTHS: [usize; 3] = [17, 1009, 70_001];

pub fn check(checker: &mut Checker) -> Result<(), TrainError> {
    for dtype in checker.dtypes.clone() {
        for length in LENGTHS {
            let case = format!("[{length}]");
            checker.check("adamw", &case, dtype, |device| adamw_steps(length, dtype, device))?;
            checker
                .check("sum_of_squares", &case, dtype, |device| squares(length, dtype, device))?;
            checker.check("quantize", &case, dtype, |device| quantized(length, dtype, device))?;
        }
        for shape in [[1, 17], [11, 1009], [2, 70_001]] {
            let case = format!("{shape:?}");
            checker.check("reduce_chunks", &case, dtype, |device| chunks(shape, dtype, device))?;
        }
        for [length, ranks] in [[17, 3], [70_001, 4]] {
            let case = format!("[{length}] of {ranks} ranks");
            let differences = |device: &Device| reduced(length, ranks, dtype, device);
            checker.check("reduce_quantized", &case, dtype, differences)?;
        }
        for lengths in [vec![17, 1, 1009, 64, 3], vec![70_001, 33]] {
            let case = format!("{lengths:?}");
            checker.check("pack", &case, dtype, |device| buckets(&lengths, dtype, device))?;
        }
        for sizes in [[3, 5, 7], [67, 24, 331]] {
            let [tokens, dim, vocab] = sizes;
            let case = format!("{tokens} x {dim} by {vocab} in 2 slices");
            checker.check("vocabulary", &case, dtype, |device| slices(sizes, dtype, device))?;
        }
    }
    Ok(())
}

/// Numbers that the format has, on the device in it.
fn input<const D: usize>(shape: [usize; D], seed: u64, dtype: DType, device: &Device) -> Tensor<D> {
    noise(shape, seed).to_device(device).cast(dtype)
}

/// The same numbers in f64, on flex.
fn wide<const D: usize>(shape: [usize; D], seed: u64, dtype: DType) -> Tensor<D> {
    noise(shape, seed).cast(dtype).cast(DType::F64)
}

/// Five steps with gradients of the format; and the copy in it that the last one makes.
fn adamw_steps(length: usize, dtype: DType, device: &Device) -> Vec<Difference> {
    let step = |step| AdamwStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step,
        gradient_scale: 0.7,
    };
    let start = |device: &Device, dtype| {
        let zero = || Tensor::<1>::zeros([length], (device, dtype));
        [noise([length], 1).to_device(device).cast(dtype), zero(), zero()]
    };
    let (mut state, mut copy) = (start(device, DType::F32), None);
    let mut want = start(&Device::flex(), DType::F64);
    for t in 1..=5 {
        let [parameter, first, second] = state;
        let gradient = input([length], 10 + t, dtype, device);
        state = match dtype {
            DType::F32 => adamw::adamw(parameter, gradient, first, second, step(t)),
            _ => {
                let (state, rounded) =
                    adamw_with_copy(parameter, gradient, first, second, step(t), dtype);
                copy = Some(rounded);
                state
            }
        };
        let [parameter, first, second] = want;
        want = adamw::reference::adamw(
            parameter,
            wide([length], 10 + t, dtype),
            first,
            second,
            step(t),
        );
    }
    let rounded = values(state[0].clone().cast(dtype));
    let copy = copy.map(|copy| Difference {
        of: "copy",
        error: distance(&values(copy), &rounded),
        bound: 0.0,
    });
    ["parameter", "first moment", "second moment"]
        .into_iter()
        .zip(state.into_iter().zip(want))
        .map(|(of, (got, want))| Difference {
            of,
            error: distance(&values(got), &values(want)),
            bound: 1e-6,
        })
        .chain(copy)
        .collect()
}

fn squares(length: usize, dtype: DType, device: &Device) -> Vec<Difference> {
    let got = values(sum_of_squares(input([length], 5, dtype, device)));
    let want = values(norm::reference::sum_of_squares(wide([length], 5, dtype)));
    vec![Difference { of: "output", error: distance(&got, &want), bound: 1e-6 }]
}

/// Half a step, and what f32 adds to it: three roundings of up to 127 steps (2^-24 each) before the whole number is
/// taken and one after it.
const HALF_A_STEP: f64 = 0.5 + 4.0 * 127.0 / (1 << 24) as f64;
const BLOCK: usize = 64;

/// In steps: multiples of the scale of a block.
fn quantized(length: usize, dtype: DType, device: &Device) -> Vec<Difference> {
    let quantized = quantize::quantize(input([length], 5, dtype, device), BLOCK);
    let scales = values(quantized.scales.clone());
    let got = values(dequantize(quantized, DType::F32));
    let want = values(wide([length], 5, dtype));
    let (_, steps) = quantize::reference::quantize(wide([length], 5, dtype), BLOCK);
    vec![
        Difference { of: "values", error: in_steps(&got, &want, &scales), bound: HALF_A_STEP },
        Difference { of: "scales", error: distance(&scales, &values(steps)), bound: 1e-6 },
    ]
}

fn in_steps(got: &[f64], want: &[f64], scales: &[f64]) -> f64 {
    let pairs = got.iter().zip(want).enumerate();
    let steps = pairs.map(|(i, (got, want))| (got - want).abs() / scales[i / BLOCK]);
    // A number that is none is none of the smaller ones either.
    steps.fold(0.0, |worst, step| if step <= worst { worst } else { step })
}

/// The mean of what ranks have quantised, quantised again.
fn reduced(length: usize, ranks: usize, dtype: DType, device: &Device) -> Vec<Difference> {
    let part = |rank| quantize::quantize(input([length], rank as u64, dtype, device), BLOCK);
    let parts: Vec<Quantized> = (0..ranks).map(part).collect();
    let mut want = vec![0.0; length];
    for part in &parts {
        let part = values(dequantize(part.clone(), DType::F32));
        want.iter_mut().zip(part).for_each(|(sum, x)| *sum += x / ranks as f64);
    }
    let words = parts.iter().map(|part| part.values.clone().unsqueeze_dim::<2>(0)).collect();
    let words: Tensor<2, Int> = Tensor::cat(words, 0);
    let scales = parts.iter().map(|part| part.scales.clone().unsqueeze_dim::<2>(0)).collect();
    let mean = reduce_quantized(words, Tensor::cat(scales, 0), length, BLOCK, 1.0 / ranks as f32);
    let scales = values(mean.scales.clone());
    let got = values(dequantize(mean, DType::F32));
    // The f32 sums are off by up to two roundings a rank, of numbers up to 127 steps.
    let bound = HALF_A_STEP + 127.0 * ranks as f64 * 2.0_f64.powi(-22);
    vec![Difference { of: "values", error: in_steps(&got, &want, &scales), bound }]
}

fn chunks(shape: [usize; 2], dtype: DType, device: &Device) -> Vec<Difference> {
    const SCALE: f32 = 1.0 / 3.0;
    let got = values(reduce_chunks(input(shape, 3, dtype, device), SCALE, dtype));
    let want = wide(shape, 3, dtype);
    let want = values(reduce::reference::reduce_chunks(want, SCALE, DType::F64));
    let bound = 12.0 * unit(DType::F32) + if dtype == DType::F32 { 0.0 } else { unit(dtype) };
    vec![Difference { of: "output", error: distance(&got, &want), bound }]
}

/// Tensors in f32 and the format, packed in the format and unpacked in f32.
fn buckets(lengths: &[usize], dtype: DType, device: &Device) -> Vec<Difference> {
    let tensors = |device: &Device| {
        let tensor = |(i, length): (usize, &usize)| {
            let held = if i % 2 == 0 { DType::F32 } else { dtype };
            input([*length], i as u64, held, device)
        };
        lengths.iter().enumerate().map(tensor).collect::<Vec<_>>()
    };
    let length = lengths.iter().sum::<usize>() + 11;
    let packed = pack(&tensors(device), dtype, length);
    let want = bucket::reference::pack(&tensors(&Device::flex()), dtype, length);
    let got = values(packed.clone());
    let error = distance(&got, &values(want.clone()));
    let parts = unpack(packed, lengths, DType::F32).into_iter().map(values);
    let wanted = bucket::reference::unpack(want, lengths, DType::F32).into_iter().map(values);
    let worst = parts.zip(wanted).map(|(got, want)| distance(&got, &want)).fold(0.0, f64::max);
    vec![
        Difference { of: "bucket", error, bound: 0.0 },
        Difference { of: "parts", error: worst, bound: 0.0 },
    ]
}

/// The loss, as two ranks that have half of the words each take it, and its gradients.
fn slices([tokens, dim, vocab]: [usize; 3], dtype: DType, device: &Device) -> Vec<Difference> {
    let words = targets(tokens, vocab);
    let (shapes, first) = ([[tokens, dim], [dim, vocab]], vocab / 2);
    let [hidden, weight] =
        [0, 1].map(|i| wide(shapes[i], i as u64, dtype).autodiff().require_grad());
    let wanted = whole_numbers(&words, [tokens], &hidden.device());
    let loss =
        cross_entropy::reference::linear_cross_entropy(hidden.clone(), weight.clone(), wanted);
    let gradients = loss.backward();
    let want = [hidden, weight].map(|x| x.grad(&gradients).map(values).unwrap_or_default());

    let hidden = input(shapes[0], 0, dtype, device);
    let weight = input(shapes[1], 1, dtype, device);
    let targets = whole_numbers(&words, [tokens], device);
    let parts = [(0, first), (first, vocab - first)]
        .map(|(start, length)| (start, weight.clone().narrow(1, start, length)));
    let [(sums, logits), (other_sums, other_logits)] = parts.clone().map(|(start, part)| {
        let statistics = vocabulary_statistics(hidden.clone(), part, targets.clone(), start);
        (statistics.log_sum_exp, statistics.target_logit)
    });
    let log_sum_exp = (sums.exp() + other_sums.exp()).log();
    let ignored = targets.clone().lower_elem(0);
    let token_losses = log_sum_exp.clone() - logits - other_logits;
    let got = values(token_losses.mask_fill(ignored, 0.0).sum());
    let one = Tensor::<1>::ones([1], (device, DType::F32));
    let [(rows, left), (other_rows, right)] = parts.map(|(start, part)| {
        let [rows, part] = vocabulary_gradients(
            hidden.clone(),
            part,
            targets.clone(),
            start,
            log_sum_exp.clone(),
            one.clone(),
        );
        (rows.cast(DType::F32), part)
    });
    let d_hidden = values(rows + other_rows);
    let d_weight = values(Tensor::cat(vec![left, right], 1));
    let bound = match dtype {
        DType::F32 if is_cuda(device) => (2.0 * dim as f64 + 4.0) * TF32,
        DType::F32 => 1e-5,
        // Logits up to `dim` are rounded; then as `linear_cross_entropy`.
        dtype => (2.0 * dim as f64 + 4.0) * unit(dtype),
    };
    let loss = Difference { of: "loss", error: distance(&got, &values(loss.inner())), bound };
    let gradients = [("gradient of hidden", &d_hidden), ("gradient of weight", &d_weight)];
    let pairs = gradients.into_iter().zip(&want);
    let gradients =
        pairs.map(|((of, got), want)| Difference { of, error: distance(got, want), bound });
    std::iter::once(loss).chain(gradients).collect()
}
