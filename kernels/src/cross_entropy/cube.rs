//! Linear and cross-entropy on CubeCL devices: matrix products by the backend, a cube a row of logits
//! for the rest. The equations and the order of chunks are those of `flex.rs`.

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::tensor::{DType, FloatDType, IntDType, Shape, Slice as Cut};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::chunks::Chunks;
use crate::cube::{
    UNITS, cube_max, cube_sum, cubes, element, elementwise, empty, into_contiguous, owned, zeros,
};

/// Hidden states and a slice of the vocabulary, which begins at the word `first`. (The whole
/// vocabulary is the slice from 0.)
pub(super) struct Slice {
    /// `[tokens, dim]`.
    hidden: CubeTensor,
    /// `[dim, vocab of the slice]`.
    weight: CubeTensor,
    /// Of the whole vocabulary, in i32; negative for tokens that do not count.
    targets: CubeTensor,
    first: usize,
    chunks: Chunks,
}

/// What is known of each token's row of logits after some of its columns, `[tokens]` in f32.
pub(super) struct Statistics {
    pub(super) log_sum_exp: CubeTensor,
    /// 0 while the target was not seen.
    pub(super) target_logit: CubeTensor,
}

impl Slice {
    pub(super) fn new(
        hidden: CubeTensor,
        weight: CubeTensor,
        targets: CubeTensor,
        first: usize,
        budget: usize,
    ) -> Self {
        let chunks = Chunks::new(hidden.shape()[0], weight.shape()[1], budget);
        let targets = into_contiguous(CubeBackend::int_cast(targets, IntDType::I32));
        Self { hidden, weight, targets, first, chunks }
    }

    fn is_empty(&self) -> bool {
        self.hidden.shape()[0] == 0 || self.weight.shape()[1] == 0
    }

    /// The statistics of rows of no logits.
    fn no_statistics(&self) -> Statistics {
        let tokens = self.hidden.shape()[0];
        let least = f32::NEG_INFINITY.into();
        let (shape, dtype) = (Shape::new([tokens]), FloatDType::F32);
        let log_sum_exp = CubeBackend::float_full(shape, least, &self.hidden.device, dtype);
        Statistics { log_sum_exp, target_logit: zeros(&self.hidden, [tokens], DType::F32) }
    }

    fn no_gradients(&self) -> (CubeTensor, CubeTensor) {
        let zeros = |like: &CubeTensor| zeros(like, like.shape(), like.dtype());
        (zeros(&self.hidden), zeros(&self.weight))
    }

    fn empty_statistics(&self) -> Statistics {
        let tokens = || empty(&self.hidden, [self.hidden.shape()[0]], DType::F32);
        Statistics { log_sum_exp: tokens(), target_logit: tokens() }
    }

    /// Adds a chunk of logits, which begins at `row` and `column`, to the statistics of its tokens.
    fn add_chunk(&self, to: &Statistics, logits: &CubeTensor, row: usize, column: usize) {
        kernel::add_chunk::launch(
            &logits.client,
            cubes(logits.shape()[0]),
            CubeDim::new_1d(UNITS as u32),
            logits.clone().into_tensor_arg(),
            self.targets.clone().into_tensor_arg(),
            to.log_sum_exp.clone().into_tensor_arg(),
            to.target_logit.clone().into_tensor_arg(),
            row,
            (self.first + column) as i32,
            column == 0,
            element(logits),
        );
    }

    /// Turns a chunk of logits, which begins at `row` and `column`, into their gradients. In place: only
    /// this file holds it.
    fn to_gradients(
        &self,
        log_sum_exp: &CubeTensor,
        logits: &CubeTensor,
        row: usize,
        column: usize,
    ) {
        kernel::to_gradients::launch(
            &logits.client,
            cubes(logits.shape()[0]),
            CubeDim::new_1d(UNITS as u32),
            logits.clone().into_tensor_arg(),
            self.targets.clone().into_tensor_arg(),
            log_sum_exp.clone().into_tensor_arg(),
            row,
            (self.first + column) as i32,
            element(logits),
        );
    }

    /// Pass 1: the statistics of every token.
    pub(super) fn statistics(&self) -> Statistics {
        if self.is_empty() {
            return self.no_statistics();
        }
        let statistics = self.empty_statistics();
        for columns in self.chunks.columns() {
            let weight = part(&self.weight, 1, &columns);
            for rows in self.chunks.rows() {
                let hidden = part(&self.hidden, 0, &rows);
                let logits = CubeBackend::float_matmul(hidden, weight.clone());
                self.add_chunk(&statistics, &logits, rows.start, columns.start);
            }
        }
        statistics
    }

    /// Pass 2: the gradients of hidden states and weight for the log-sum-exp of the whole vocabulary.
    pub(super) fn gradients(&self, log_sum_exp: &CubeTensor) -> (CubeTensor, CubeTensor) {
        if self.is_empty() {
            return self.no_gradients();
        }
        self.gradients_by(|logits, row, column| self.to_gradients(log_sum_exp, logits, row, column))
    }

    /// The gradients of hidden states and weight, where `to_gradients(logits, row, column)` turns a chunk
    /// of logits into their gradients.
    fn gradients_by(
        &self,
        to_gradients: impl Fn(&CubeTensor, usize, usize),
    ) -> (CubeTensor, CubeTensor) {
        let dtype = self.weight.dtype();
        let mut d_weight = empty(&self.weight, self.weight.shape(), dtype);
        let mut d_hidden: Vec<Option<CubeTensor>> = self.chunks.rows().map(|_| None).collect();
        for columns in self.chunks.columns() {
            let weight = part(&self.weight, 1, &columns);
            let weight_transposed = CubeBackend::float_swap_dims(weight.clone(), 0, 1);
            let mut d_columns = None;
            for (rows, d_rows) in self.chunks.rows().zip(&mut d_hidden) {
                let hidden = part(&self.hidden, 0, &rows);
                let logits = CubeBackend::float_matmul(hidden.clone(), weight.clone());
                to_gradients(&logits, rows.start, columns.start);
                let hidden = CubeBackend::float_swap_dims(hidden, 0, 1);
                add(d_rows, CubeBackend::float_matmul(logits.clone(), weight_transposed.clone()));
                add(&mut d_columns, CubeBackend::float_matmul(hidden, logits));
            }
            let Some(d_columns) = d_columns else { continue };
            let d_columns = CubeBackend::float_cast(d_columns, dtype.into());
            d_weight = if self.chunks.whole_rows() {
                d_columns
            } else {
                CubeBackend::float_slice_assign(d_weight, &cut(1, &columns), d_columns)
            };
        }
        let d_hidden = CubeBackend::float_cat(d_hidden.into_iter().flatten().collect(), 0);
        (CubeBackend::float_cast(d_hidden, self.hidden.dtype().into()), d_weight)
    }

    /// The summed loss, `[1]`, from the statistics of the whole vocabulary.
    fn loss(&self, statistics: Statistics) -> CubeTensor {
        let loss = empty(&self.hidden, [1], DType::F32);
        kernel::loss::launch(
            &loss.client,
            cubes(1),
            CubeDim::new_1d(UNITS as u32),
            statistics.log_sum_exp.into_tensor_arg(),
            statistics.target_logit.into_tensor_arg(),
            self.targets.clone().into_tensor_arg(),
            loss.clone().into_tensor_arg(),
        );
        loss
    }

    /// The loss `[1]`, where this slice is the whole vocabulary.
    pub(super) fn forward(&self) -> CubeTensor {
        if self.is_empty() {
            return zeros(&self.hidden, [1], DType::F32);
        }
        self.loss(self.statistics())
    }

    /// The loss `[1]` and the gradients of hidden states and weight for a gradient of 1, where this
    /// slice is the whole vocabulary.
    pub(super) fn forward_and_gradients(&self) -> (CubeTensor, CubeTensor, CubeTensor) {
        if self.is_empty() {
            let (d_hidden, d_weight) = self.no_gradients();
            return (self.forward(), d_hidden, d_weight);
        }
        let (statistics, (d_hidden, d_weight)) = if self.chunks.whole_rows() {
            let statistics = self.empty_statistics();
            let gradients = self.gradients_by(|logits, row, column| {
                self.add_chunk(&statistics, logits, row, column);
                self.to_gradients(&statistics.log_sum_exp, logits, row, column);
            });
            (statistics, gradients)
        } else {
            let statistics = self.statistics();
            let gradients = self.gradients(&statistics.log_sum_exp);
            (statistics, gradients)
        };
        (self.loss(statistics), d_hidden, d_weight)
    }
}

/// A gradient times the gradient of the loss, in place where nothing else holds it.
pub(super) fn scaled(gradient: CubeTensor, loss: CubeTensor) -> CubeTensor {
    let gradient = owned(gradient);
    let elements = gradient.shape().num_elements();
    if elements > 0 {
        let (count, units) = elementwise(elements);
        let types = [element(&gradient), element(&loss)];
        kernel::scale::launch(
            &gradient.client,
            count,
            units,
            gradient.clone().into_tensor_arg(),
            loss.into_tensor_arg(),
            types,
        );
    }
    gradient
}

/// A range of one of the two dims.
fn cut(dim: usize, range: &Range<usize>) -> [Cut; 2] {
    let mut cut = [Cut::full(); 2];
    cut[dim] = Cut::from(range.clone());
    cut
}

/// A range of a tensor of two dims, where it lies if the device can bind it there.
fn part(tensor: &CubeTensor, dim: usize, range: &Range<usize>) -> CubeTensor {
    CubeBackend::float_slice(tensor.clone(), &cut(dim, range))
}

/// Adds to a sum: in f32 from the second part on.
fn add(sum: &mut Option<CubeTensor>, part: CubeTensor) {
    let wide = |x| CubeBackend::float_cast(x, DType::F32.into());
    *sum = Some(match sum.take() {
        Some(sum) => CubeBackend::float_add(wide(sum), wide(part)),
        None => part,
    });
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// A cube adds one row of a chunk of logits to the statistics of its token. `fresh`: the chunk is
    /// the first of the row.
    #[cube(launch)]
    pub(super) fn add_chunk<F: Float>(
        logits: &Tensor<F>,
        targets: &Tensor<i32>,
        log_sum_exp: &mut Tensor<f32>,
        target_logit: &mut Tensor<f32>,
        first_row: usize,
        first_column: i32,
        #[comptime] fresh: bool,
        #[define(F)] _type: ElemType,
    ) {
        let mut scratch = Shared::<[f32]>::new_slice(UNITS);
        let row = CUBE_POS;
        if row >= logits.shape(0) {
            terminate!();
        }
        let (start, columns) = (row * logits.stride(0), logits.shape(1));
        let unit = UNIT_POS as usize;
        let mut top = f32::cast_from(logits[start]);
        let mut i = unit;
        while i < columns {
            top = max(top, f32::cast_from(logits[start + i]));
            i += CUBE_DIM as usize;
        }
        let top = cube_max(top, &mut scratch);
        let mut total = 0.0_f32;
        let mut i = unit;
        while i < columns {
            total += (f32::cast_from(logits[start + i]) - top).exp();
            i += CUBE_DIM as usize;
        }
        let total = cube_sum(total, &mut scratch);
        if unit == 0 {
            let token = first_row + row;
            let chunk = top + total.ln();
            if fresh {
                log_sum_exp[token] = chunk;
                target_logit[token] = 0.0;
            } else {
                let before = log_sum_exp[token];
                // Of a number and NaN, a device's maximum may be the number: both terms keep it.
                let high = max(before, chunk);
                log_sum_exp[token] = high + ((before - high).exp() + (chunk - high).exp()).ln();
            }
            let column = targets[token] - first_column;
            if column >= 0 && (column as usize) < columns {
                target_logit[token] = f32::cast_from(logits[start + column as usize]);
            }
        }
    }

    /// A cube turns one row of logits into their gradients.
    #[cube(launch)]
    pub(super) fn to_gradients<F: Float>(
        logits: &mut Tensor<F>,
        targets: &Tensor<i32>,
        log_sum_exp: &Tensor<f32>,
        first_row: usize,
        first_column: i32,
        #[define(F)] _type: ElemType,
    ) {
        let row = CUBE_POS;
        if row >= logits.shape(0) {
            terminate!();
        }
        let (start, columns) = (row * logits.stride(0), logits.shape(1));
        let target = targets[first_row + row];
        let log_sum_exp = log_sum_exp[first_row + row];
        let mut i = UNIT_POS as usize;
        while i < columns {
            let mut gradient = 0.0_f32;
            if target >= 0 {
                gradient = (f32::cast_from(logits[start + i]) - log_sum_exp).exp();
                if i as i32 + first_column == target {
                    gradient -= 1.0;
                }
            }
            logits[start + i] = F::cast_from(gradient);
            i += CUBE_DIM as usize;
        }
    }

    /// One cube sums the losses of all tokens.
    #[cube(launch)]
    pub(super) fn loss(
        log_sum_exp: &Tensor<f32>,
        target_logit: &Tensor<f32>,
        targets: &Tensor<i32>,
        loss: &mut Tensor<f32>,
    ) {
        let mut scratch = Shared::<[f32]>::new_slice(UNITS);
        let mut sum = 0.0_f32;
        let mut token = UNIT_POS as usize;
        while token < targets.len() {
            if targets[token] >= 0 {
                sum += log_sum_exp[token] - target_logit[token];
            }
            token += CUBE_DIM as usize;
        }
        let sum = cube_sum(sum, &mut scratch);
        if UNIT_POS == 0 {
            loss[0] = sum;
        }
    }

    #[cube(launch)]
    pub(super) fn scale<F: Float, L: Float>(
        values: &mut Tensor<F>,
        scale: &Tensor<L>,
        #[define(F, L)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= values.len() {
            terminate!();
        }
        let scaled = f32::cast_from(values[ABSOLUTE_POS]) * f32::cast_from(scale[0]);
        values[ABSOLUTE_POS] = F::cast_from(scaled);
    }
}
