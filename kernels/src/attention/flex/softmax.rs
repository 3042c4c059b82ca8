//! The pieces of the softmax that are taken on one row of a tile of scores.

use std::ops::Range;

use crate::flex::{exp2, tanh};

use super::Scores;

/// Scores of products that are scaled already: capped, where there is a cap.
#[inline(always)]
pub(super) fn cap(row: &mut [f32], scores: Scores) {
    if let Some(cap) = scores.softcap {
        let inverse = 1.0 / cap;
        for x in row {
            *x = cap * tanh(*x * inverse);
        }
    }
}

/// Turns the seen part of a row of scores into `exp(score - shift)`, and the rest into zeros. Returns
/// the sum.
#[inline(always)]
pub(super) fn exponentials(row: &mut [f32], seen: Range<usize>, shift: f32) -> f32 {
    const LANES: usize = 16;
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let shift = -shift * LOG2_E;
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    let mut lanes = [0.0_f32; LANES];
    let mut chunks = row[seen].chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (x, lane) in chunk.iter_mut().zip(&mut lanes) {
            *x = exp2(x.mul_add(LOG2_E, shift));
            *lane += *x;
        }
    }
    for (x, lane) in chunks.into_remainder().iter_mut().zip(&mut lanes) {
        *x = exp2(x.mul_add(LOG2_E, shift));
        *lane += *x;
    }
    crate::flex::sum(&lanes)
}
