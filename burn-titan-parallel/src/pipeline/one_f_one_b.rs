//! 1F1B.

use super::writer::RankWriter;
use super::{Family, Schedule, ScheduleError, Shape};

/// One forward, one backward: a rank runs as many forwards ahead as there are ranks after it, and from then on a
/// backward after each forward (Narayanan et al., 2019, "PipeDream: Generalized Pipeline Parallelism for DNN
/// Training", in the synchronous form PipeDream-Flush of Narayanan et al., 2021).
///
/// The bubble is that of GPipe, (p - 1)(F + B), and rank `r` keeps the activations of only min(p - r, m)
/// micro-batches, for every `m`.
///
/// # Errors
/// Counts of zero or far too many, and other than 1 stage per rank.
pub fn one_f_one_b(shape: Shape) -> Result<Schedule, ScheduleError> {
    shape.check(Family::OneForwardOneBackward)?;
    let steps = (0..shape.ranks).map(|rank| {
        let ahead = (shape.ranks - 1 - rank).min(shape.micro_batches);
        let mut writer = RankWriter::new(shape.micro_batches);
        (0..ahead).for_each(|_| writer.forward(rank));
        for _ in ahead..shape.micro_batches {
            writer.forward(rank);
            writer.backward(rank);
        }
        (0..ahead).for_each(|_| writer.backward(rank));
        writer.finish()
    });
    Schedule::new(shape.loops(), shape.micro_batches, steps.collect())
}
