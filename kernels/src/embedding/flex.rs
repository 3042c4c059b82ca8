//! Token embedding on the CPU: rows are copied forward; backward, a task sums the tokens of a row.

use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{F32View, Number, Values, convert, int_values, simd_fn, with_number, zeros};

/// Least rows that a task takes.
const ROWS_A_TASK: usize = 16;

pub(super) fn forward(weight: &FlexTensor, ids: &FlexTensor) -> FlexTensor {
    let [batch, seq] = ids.shape().dims();
    let [vocab, dim] = weight.shape().dims();
    let ids = int_values(ids);
    let mut output = zeros(Shape::new([batch, seq, dim]), weight.dtype());
    with_number!(weight.dtype(), E => {
        let weight = Values::<E>::new(weight);
        let rows = output.storage_mut::<E>().par_chunks_mut(dim.max(1)).zip(&ids);
        rows.with_min_len(ROWS_A_TASK).for_each(|(row, id)| {
            if let Some(id) = row_of(*id, vocab) {
                row.copy_from_slice(&weight[id * dim..][..dim]);
            }
        });
    });
    output
}

/// The gradient of the weight. Rows that no token used keep the zeros of the allocation, untouched.
pub(super) fn backward(gradient: &FlexTensor, ids: &FlexTensor, vocab: usize) -> FlexTensor {
    let [_, _, dim] = gradient.shape().dims();
    let used = tokens_by_row(&int_values(ids), vocab);
    let mut d_weight = zeros(Shape::new([vocab, dim]), gradient.dtype());
    let values = F32View::new(gradient);
    with_number!(gradient.dtype(), E => {
        let rows = used_rows(d_weight.storage_mut::<E>(), &used, dim);
        rows.into_par_iter().with_min_len(ROWS_A_TASK).for_each_init(
            || vec![0.0; dim],
            |sum, (row, tokens)| {
                sum.fill(0.0);
                for (_, token) in tokens {
                    add(sum, &values[token * dim..][..dim]);
                }
                convert(sum, row);
            },
        );
    });
    d_weight
}

/// `(row, token)`.
type Use = (usize, usize);

/// The uses of all tokens, by row and then by token.
fn tokens_by_row(ids: &[i64], vocab: usize) -> Vec<Use> {
    let tokens = ids.iter().enumerate();
    let mut used: Vec<Use> =
        tokens.filter_map(|(token, id)| Some((row_of(*id, vocab)?, token))).collect();
    used.sort_unstable();
    used
}

/// Each row that was used, with its tokens.
fn used_rows<'a, E: Number>(
    mut rest: &'a mut [E],
    used: &'a [Use],
    dim: usize,
) -> Vec<(&'a mut [E], &'a [Use])> {
    let mut rows = Vec::new();
    let mut first = 0;
    for tokens in used.chunk_by(|a, b| a.0 == b.0) {
        let start = (tokens[0].0 - first) * dim;
        let (row, after) = rest[start..].split_at_mut(dim);
        rows.push((row, tokens));
        rest = after;
        first = tokens[0].0 + 1;
    }
    rows
}

fn row_of(id: i64, vocab: usize) -> Option<usize> {
    usize::try_from(id).ok().filter(|id| *id < vocab)
}

simd_fn! {
    fn add(sum: &'a mut [f32], row: &'a [f32]) -> () {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += x;
        }
    }
}
