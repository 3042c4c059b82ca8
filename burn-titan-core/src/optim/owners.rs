//! Muon over sharded matrices: each matrix is gathered to one rank, its owner, which orthogonalises it and
//! gives every rank its piece of the result. The work is spread evenly, and nothing is computed twice.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use burn_titan_parallel::{CommError, Communicator};

use super::muon::{MuonRule, direction};
use crate::executor::Layout;
use crate::model::ParameterSpec;

/// A matrix of the step.
pub(super) struct Matrix {
    pub(super) spec: ParameterSpec,
    pub(super) rule: MuonRule,
    /// This rank's piece of its update, if any element of it is here.
    pub(super) update: Option<Tensor<1>>,
}

impl Matrix {
    fn shape(&self) -> [usize; 2] {
        [self.spec.shape[0], self.spec.shape[1]]
    }

    /// Up to a factor, the operations of an orthogonalisation.
    fn cost(&self) -> usize {
        let [rows, columns] = self.shape();
        rows.saturating_mul(columns).saturating_mul(rows.min(columns))
    }
}

/// This rank's piece of each matrix's direction; all ranks that share the matrices call it with the same list.
pub(super) fn directions(
    mut matrices: Vec<Matrix>,
    layout: &Layout,
    shard: &dyn Communicator,
    device: &Device,
) -> Result<Vec<Option<Tensor<1>>>, CommError> {
    let (ranks, here) = (shard.size(), shard.rank());
    if ranks == 1 {
        let whole = |mut matrix: Matrix| {
            let update = matrix.update.take()?;
            Some(direction(matrix.shape(), update, &matrix.rule))
        };
        return Ok(matrices.into_iter().map(whole).collect());
    }
    let empty = || Tensor::empty([0], (device, DType::F32));
    let joined = |pieces: Vec<Tensor<1>>| {
        if pieces.is_empty() { empty() } else { Tensor::cat(pieces, 0) }
    };
    let owners = owners(&matrices, ranks);
    let piece = |matrix: &Matrix, rank: usize| layout.piece(&matrix.spec.name, rank);
    // To every owner, in the order of ranks, this rank's pieces of its matrices.
    let mut out = vec![0; ranks];
    let mut pieces = Vec::new();
    for (owner, length) in out.iter_mut().enumerate() {
        for (matrix, _) in matrices.iter_mut().zip(&owners).filter(|(_, o)| **o == owner) {
            *length += piece(matrix, here).len();
            pieces.extend(matrix.update.take());
        }
    }
    let mine: Vec<&Matrix> =
        matrices.iter().zip(&owners).filter(|(_, owner)| **owner == here).map(|(m, _)| m).collect();
    let into: Vec<usize> =
        (0..ranks).map(|rank| mine.iter().map(|m| piece(m, rank).len()).sum()).collect();
    let received = shard.all_to_all(joined(pieces).into(), &out, &into).wait()?.float();
    let ranges = (0..ranks).flat_map(|rank| mine.iter().map(move |m| piece(m, rank)));
    let mut wholes: Vec<Vec<Tensor<1>>> = vec![vec![]; mine.len()];
    for (i, part) in split(received, ranges).into_iter().enumerate() {
        wholes[i % mine.len()].extend(part);
    }
    let directions: Vec<Tensor<1>> = wholes
        .into_iter()
        .zip(&mine)
        .map(|(parts, matrix)| direction(matrix.shape(), joined(parts), &matrix.rule))
        .collect();
    let mut back = Vec::new();
    for rank in 0..ranks {
        for (matrix, direction) in mine.iter().zip(&directions) {
            let range = piece(matrix, rank);
            if !range.is_empty() {
                back.push(direction.clone().slice(range));
            }
        }
    }
    let returned = shard.all_to_all(joined(back).into(), &into, &out).wait()?.float();
    // They come in the order in which the updates went out.
    let mut order: Vec<usize> = (0..matrices.len()).collect();
    order.sort_by_key(|i| owners[*i]);
    let parts = split(returned, order.iter().map(|i| piece(&matrices[*i], here)));
    let mut result = vec![None; matrices.len()];
    for (i, part) in order.into_iter().zip(parts) {
        result[i] = part;
    }
    Ok(result)
}

/// Each matrix to the rank that has least to do so far.
fn owners(matrices: &[Matrix], ranks: usize) -> Vec<usize> {
    let mut costs = vec![0_usize; ranks];
    let mut owner = |matrix: &Matrix| {
        let least = (0..ranks).min_by_key(|rank| costs[*rank]).unwrap_or(0);
        costs[least] = costs[least].saturating_add(matrix.cost());
        least
    };
    matrices.iter().map(&mut owner).collect()
}

/// The parts of a buffer, one after the other; `None` for an empty one.
fn split(buffer: Tensor<1>, ranges: impl Iterator<Item = Range<usize>>) -> Vec<Option<Tensor<1>>> {
    let mut start = 0;
    let part = |range: Range<usize>| {
        let end = start + range.len();
        let part = (!range.is_empty()).then(|| buffer.clone().slice(start..end));
        start = end;
        part
    };
    ranges.map(part).collect()
}
