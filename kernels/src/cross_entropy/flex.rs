//! Linear and cross-entropy on the CPU.
//!
//! With `lse` the log-sum-exp of a row of logits: `loss = lse - logits[target]`,
//! `dlogits = e^(logits - lse) - one_hot(target)`, `dhidden = dlogits W^T`, `dW = hidden^T dlogits`.
//! One buffer holds a chunk of logits and then their gradients. Chunks run by columns, then by rows,
//! so that the part of `dW` that is summed into stays the same while the rows go by.

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape, bf16, f16};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::chunks::Chunks;
use crate::flex::{
    F32View, Matrix, Strided, exp, float_tensor, int_values, max, multiply, simd_fn, sum,
};

/// Hidden states and a slice of the vocabulary, which begins at the word `first`. (The whole
/// vocabulary is the slice from 0.)
pub(super) struct Slice {
    hidden: Matrix,
    /// `[dim, vocab of the slice]`.
    weight: FlexTensor,
    /// Of the whole vocabulary; negative for tokens that do not count.
    targets: Vec<i64>,
    first: i64,
    dim: usize,
    chunks: Chunks,
}

/// What is known of a row of logits after some of its columns. Rows over several slices combine: log-sum-exps
/// as in [`with_chunk`], target logits by taking the sum, since only one slice has the target.
#[derive(Clone, Copy)]
pub(super) struct RowStatistics {
    pub(super) log_sum_exp: f32,
    /// 0 while the target was not seen.
    pub(super) target_logit: f32,
}

/// Where a chunk of logits is: tokens, columns of the slice, and those columns of the weight.
struct Place<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    weight: Strided<'a>,
}

impl Slice {
    pub(super) fn new(
        hidden: &FlexTensor,
        weight: FlexTensor,
        targets: &FlexTensor,
        first: usize,
        budget: usize,
    ) -> Self {
        let [tokens, dim] = hidden.shape().dims();
        let [_, vocab] = weight.shape().dims();
        let targets = int_values(targets);
        assert_eq!(targets.len(), tokens, "a target for each token");
        let chunks = Chunks::new(tokens, vocab, budget);
        Self { hidden: Matrix::new(hidden), weight, targets, first: first as i64, dim, chunks }
    }

    /// Calls `visit` with each chunk of logits.
    fn for_chunks(&self, mut visit: impl FnMut(Place, &mut [f32])) {
        let mut buffer = vec![0.0; self.chunks.elements()];
        for columns in self.chunks.columns() {
            let weight = self.weight.narrow(1, columns.start, columns.len());
            let weight = Matrix::new(&weight);
            for rows in self.chunks.rows() {
                let sizes = [rows.len(), columns.len(), self.dim];
                let logits = &mut buffer[..rows.len() * columns.len()];
                let hidden = self.hidden.strided().rows_from(rows.start);
                multiply(sizes, hidden, weight.strided(), logits, columns.len(), false);
                visit(Place { rows, columns: columns.clone(), weight: weight.strided() }, logits);
            }
        }
    }

    /// The column of the target of a token among some columns of the slice.
    fn target_in(&self, token: usize, columns: &Range<usize>) -> Option<usize> {
        let column = usize::try_from(self.targets[token] - self.first).ok()?;
        columns.contains(&column).then(|| column - columns.start)
    }

    /// Pass 1: a row of statistics for each token.
    pub(super) fn statistics(&self) -> Vec<RowStatistics> {
        let empty = RowStatistics { log_sum_exp: f32::NEG_INFINITY, target_logit: 0.0 };
        let mut statistics = vec![empty; self.targets.len()];
        self.for_chunks(|place, logits| {
            let columns = &place.columns;
            let logits = logits.par_chunks(columns.len());
            let rows = statistics[place.rows.clone()].par_iter_mut().zip(place.rows);
            logits.zip(rows).for_each(|(logits, (statistics, token))| {
                *statistics = with_chunk(*statistics, logits, self.target_in(token, columns));
            });
        });
        statistics
    }

    /// Pass 2: the gradients of hidden states and weight for the log-sum-exp of the whole vocabulary.
    pub(super) fn gradients(&self, log_sum_exp: impl Fn(usize) -> f32 + Sync) -> [Vec<f32>; 2] {
        self.gradients_by(|place, logits| {
            let columns = &place.columns;
            let rows = logits.par_chunks_mut(columns.len()).zip(place.rows.clone());
            rows.for_each(|(logits, token)| {
                if self.targets[token] < 0 {
                    logits.fill(0.0);
                } else {
                    let target = self.target_in(token, columns);
                    logits_to_gradients(logits, log_sum_exp(token), target);
                }
            });
        })
    }

    /// The gradients of hidden states and weight; `d_logits` turns logits into their gradients.
    fn gradients_by(&self, mut d_logits: impl FnMut(&Place, &mut [f32])) -> [Vec<f32>; 2] {
        let (dim, [_, vocab]) = (self.dim, self.weight.shape().dims());
        let mut d_hidden = vec![0.0; self.targets.len() * dim];
        let mut d_weight = vec![0.0; dim * vocab];
        self.for_chunks(|place, logits| {
            d_logits(&place, logits);
            let Place { rows, columns, weight } = place;
            let d_logits = Strided { values: logits, row: columns.len(), column: 1 };
            let sizes = [rows.len(), dim, columns.len()];
            let d_hidden = &mut d_hidden[rows.start * dim..];
            multiply(sizes, d_logits, weight.transposed(), d_hidden, dim, columns.start > 0);
            let sizes = [dim, columns.len(), rows.len()];
            let hidden = self.hidden.strided().rows_from(rows.start).transposed();
            let d_weight = &mut d_weight[columns.start..];
            multiply(sizes, hidden, d_logits, d_weight, vocab, rows.start > 0);
        });
        [d_hidden, d_weight]
    }

    /// The summed loss, where this slice is the whole vocabulary and a chunk holds whole rows. `keep`:
    /// turn the logits into their gradients.
    fn whole_rows(&self, place: &Place, logits: &mut [f32], keep: bool) -> f64 {
        let columns = &place.columns;
        let rows = logits.par_chunks_mut(columns.len()).zip(place.rows.clone());
        let losses: Vec<f64> = rows
            .map(|(logits, token)| match self.target_in(token, columns) {
                Some(target) => whole_row(logits, target, keep),
                None => {
                    logits.fill(0.0);
                    0.0
                }
            })
            .collect();
        losses.iter().sum()
    }

    /// The summed loss from the statistics of the whole vocabulary.
    fn loss(&self, statistics: &[RowStatistics]) -> f64 {
        let counted = statistics.iter().zip(&self.targets).filter(|(_, target)| **target >= 0);
        counted.map(|(row, _)| f64::from(row.log_sum_exp) - f64::from(row.target_logit)).sum()
    }

    fn assert_whole(&self) {
        let [_, vocab] = self.weight.shape().dims();
        let most = self.targets.iter().max().copied().unwrap_or(-1);
        assert!(most < vocab as i64, "the target {most} is not among {vocab} words");
    }

    /// The loss `[1]`, where this slice is the whole vocabulary.
    pub(super) fn forward(&self) -> FlexTensor {
        self.assert_whole();
        let mut loss = 0.0;
        if self.chunks.whole_rows() {
            self.for_chunks(|place, logits| loss += self.whole_rows(&place, logits, false));
        } else {
            loss = self.loss(&self.statistics());
        }
        scalar(loss)
    }

    /// The loss `[1]` and the gradients of hidden states and weight for a gradient of 1, where this
    /// slice is the whole vocabulary.
    pub(super) fn forward_and_gradients(&self) -> (FlexTensor, [Vec<f32>; 2]) {
        self.assert_whole();
        let mut loss = 0.0;
        let gradients = if self.chunks.whole_rows() {
            self.gradients_by(|place, logits| loss += self.whole_rows(place, logits, true))
        } else {
            let statistics = self.statistics();
            loss = self.loss(&statistics);
            self.gradients(|token| statistics[token].log_sum_exp)
        };
        (scalar(loss), gradients)
    }
}

fn scalar(value: f64) -> FlexTensor {
    float_tensor(vec![value as f32], Shape::new([1]), DType::F32)
}

simd_fn! {
    /// The statistics of a row after more columns.
    fn with_chunk(row: RowStatistics, logits: &'a [f32], target: Option<usize>) -> RowStatistics {
        let top = max(logits);
        let chunk = top + sum_of_exp(logits, top).ln();
        let (low, high) = if chunk < row.log_sum_exp {
            (chunk, row.log_sum_exp)
        } else {
            (row.log_sum_exp, chunk)
        };
        RowStatistics {
            log_sum_exp: high + exp(low - high).ln_1p(),
            target_logit: target.map_or(row.target_logit, |target| logits[target]),
        }
    }
}

simd_fn! {
    fn logits_to_gradients(logits: &'a mut [f32], log_sum_exp: f32, target: Option<usize>) -> () {
        for x in logits.iter_mut() {
            *x = exp(*x - log_sum_exp);
        }
        if let Some(target) = target {
            logits[target] -= 1.0;
        }
    }
}

simd_fn! {
    /// The loss of a row; `keep`: turn its logits into their gradients.
    fn whole_row(logits: &'a mut [f32], target: usize, keep: bool) -> f64 {
        let (top, target_logit) = (max(logits), logits[target]);
        let total = if keep {
            for x in logits.iter_mut() {
                *x = exp(*x - top);
            }
            let total = sum(logits);
            let inverse = 1.0 / total;
            for x in logits.iter_mut() {
                *x *= inverse;
            }
            logits[target] -= 1.0;
            total
        } else {
            sum_of_exp(logits, top)
        };
        f64::from(total.ln()) + f64::from(top) - f64::from(target_logit)
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

/// A gradient times the gradient of the loss, in place where nothing else holds it.
pub(super) fn scaled(mut gradient: FlexTensor, loss: &FlexTensor) -> FlexTensor {
    let scale = F32View::new(loss)[0];
    if scale == 1.0 {
        return gradient;
    }
    match gradient.dtype() {
        DType::F32 => each(gradient.storage_mut::<f32>(), |x| x * scale),
        DType::BF16 => {
            each(gradient.storage_mut::<bf16>(), |x| bf16::from_f32(x.to_f32() * scale));
        }
        DType::F16 => each(gradient.storage_mut::<f16>(), |x| f16::from_f32(x.to_f32() * scale)),
        DType::F64 => each(gradient.storage_mut::<f64>(), |x| x * f64::from(scale)),
        other => unreachable!("a gradient has the dtype {other:?}"),
    }
    gradient
}

fn each<E: Copy + Send + Sync>(values: &mut [E], f: impl Fn(E) -> E + Sync) {
    const CHUNK: usize = 16 * 1024;
    values.par_chunks_mut(CHUNK).for_each(|chunk| {
        for x in chunk {
            *x = f(*x);
        }
    });
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::ops::FloatTensorOps;

    use super::*;

    /// Two ranks with half of the vocabulary each, as a vocabulary-parallel loss has it.
    #[test]
    fn slices_of_the_vocabulary_combine() {
        let ([tokens, dim, vocab], half) = ([13, 5, 331], 170);
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<f32>>();
        let hidden = float_tensor(wave(tokens * dim, 0.7), Shape::new([tokens, dim]), DType::F32);
        let weight = float_tensor(wave(dim * vocab, 0.3), Shape::new([dim, vocab]), DType::F32);
        let targets: Vec<f32> =
            (0..tokens).map(|i| if i == 4 { -1.0 } else { (i * 25) as f32 }).collect();
        let targets = float_tensor(targets, Shape::new([tokens]), DType::F32);
        let targets = Flex::float_into_int(targets, burn::tensor::IntDType::I64);
        let slice = |first: usize, length: usize| {
            let weight = weight.narrow(1, first, length);
            Slice::new(&hidden, weight, &targets, first, 256)
        };
        let (whole, parts) = (slice(0, vocab), [slice(0, half), slice(half, vocab - half)]);
        let want = whole.statistics();
        let [a, b] = parts.each_ref().map(Slice::statistics);
        let log_sum_exp =
            |token: usize| (a[token].log_sum_exp.exp() + b[token].log_sum_exp.exp()).ln();
        for (token, want) in want.iter().enumerate() {
            assert!((log_sum_exp(token) - want.log_sum_exp).abs() < 1e-5);
            let logit = a[token].target_logit + b[token].target_logit;
            assert!((logit - want.target_logit).abs() < 1e-6);
        }
        let [want_hidden, want_weight] = whole.gradients(|token| want[token].log_sum_exp);
        let [[hidden_a, weight_a], [hidden_b, weight_b]] =
            parts.each_ref().map(|part| part.gradients(log_sum_exp));
        for (i, want) in want_hidden.iter().enumerate() {
            assert!((hidden_a[i] + hidden_b[i] - want).abs() < 1e-5);
        }
        for (i, want) in want_weight.iter().enumerate() {
            let (row, column) = (i / vocab, i % vocab);
            let got = if column < half {
                weight_a[row * half + column]
            } else {
                weight_b[row * (vocab - half) + column - half]
            };
            assert!((got - want).abs() < 1e-5);
        }
    }
}
