//! Linear and cross-entropy on the CPU.

use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{F32View, exp, float_tensor, int_values, max, simd_fn, sum};

/// Tokens whose logits are held at once.
const CHUNK: usize = 512;

/// Gradients of hidden states and weight, for a gradient of 1.
pub(super) type Gradients = (FlexTensor, FlexTensor);

pub(super) fn forward(
    hidden: FlexTensor,
    weight: FlexTensor,
    targets: &FlexTensor,
    keep: bool,
) -> (FlexTensor, Option<Gradients>) {
    let [tokens, dim] = hidden.shape().dims();
    let targets = int_values(targets);
    let mut loss = 0.0_f64;
    let mut d_hidden = Vec::new();
    // Summed in f32, whatever the dtype of the weight.
    let mut d_weight: Option<FlexTensor> = None;
    for start in (0..tokens).step_by(CHUNK) {
        let rows = CHUNK.min(tokens - start);
        let chunk = hidden.narrow(0, start, rows);
        let logits = Flex::float_matmul(chunk.clone(), weight.clone());
        let (chunk_loss, d_logits) = rows_of_logits(&logits, &targets[start..start + rows], keep);
        loss += chunk_loss;
        if let Some(d_logits) = d_logits {
            d_hidden.push(Flex::float_matmul(d_logits.clone(), weight.transpose(0, 1)));
            let part = Flex::float_matmul(chunk.transpose(0, 1), d_logits);
            let part = Flex::float_cast(part, FloatDType::F32);
            d_weight = Some(match d_weight {
                Some(sum) => Flex::float_add(sum, part),
                None => part,
            });
        }
    }
    let gradients = keep.then(|| match d_weight {
        Some(d_weight) => {
            (Flex::float_cat(d_hidden, 0), Flex::float_cast(d_weight, weight.dtype().into()))
        }
        None => (
            FlexTensor::zeros(Shape::new([tokens, dim]), hidden.dtype()),
            FlexTensor::zeros(weight.shape(), weight.dtype()),
        ),
    });
    (float_tensor(vec![loss as f32], Shape::new([1]), DType::F32), gradients)
}

/// The summed loss of a chunk and, if kept, `softmax(logits) - one_hot(target)`.
fn rows_of_logits(logits: &FlexTensor, targets: &[i64], keep: bool) -> (f64, Option<FlexTensor>) {
    let [rows, vocab] = logits.shape().dims();
    let input = F32View::new(logits);
    let mut output = vec![0.0_f32; if keep { rows * vocab } else { 0 }];
    let row_loss = |row: usize, d_logits: &mut [f32]| -> f64 {
        let Ok(target) = usize::try_from(targets[row]) else { return 0.0 };
        let logits = &input[row * vocab..][..vocab];
        row_of_logits(logits, target, d_logits)
    };
    let losses: Vec<f64> = if keep {
        output.par_chunks_mut(vocab).enumerate().map(|(row, d)| row_loss(row, d)).collect()
    } else {
        (0..rows).into_par_iter().map(|row| row_loss(row, &mut [])).collect()
    };
    let d_logits = keep.then(|| float_tensor(output, logits.shape(), logits.dtype()));
    (losses.iter().sum(), d_logits)
}

simd_fn! {
    /// The loss of a row; `d_logits` is filled if it is not empty.
    fn row_of_logits(logits: &'a [f32], target: usize, d_logits: &'a mut [f32]) -> f64 {
        let top = max(logits);
        let total = if d_logits.is_empty() {
            sum_of_exp(logits, top)
        } else {
            for (d, x) in d_logits.iter_mut().zip(logits) {
                *d = exp(x - top);
            }
            let total = sum(d_logits);
            let inverse = 1.0 / total;
            for d in d_logits.iter_mut() {
                *d *= inverse;
            }
            d_logits[target] -= 1.0;
            total
        };
        f64::from(total.ln()) + f64::from(top) - f64::from(logits[target])
    }
}

/// The sum of `e^(x - top)`, in the order of [`sum`], so that the loss is bitwise the same whether
/// gradients are taken or not.
#[inline(always)]
fn sum_of_exp(logits: &[f32], top: f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for chunk in logits.chunks(16) {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += exp(x - top);
        }
    }
    sum(&lanes)
}

/// The gradients times the gradient of the loss.
pub(super) fn scaled((hidden, weight): Gradients, loss: FlexTensor) -> [FlexTensor; 2] {
    let scale = F32View::new(&loss)[0];
    [Flex::float_mul_scalar(hidden, scale.into()), Flex::float_mul_scalar(weight, scale.into())]
}
