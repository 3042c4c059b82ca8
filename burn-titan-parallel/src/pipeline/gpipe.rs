//! GPipe.

use super::writer::RankWriter;
use super::{Family, Schedule, ScheduleError, Shape};

/// All forwards, then all backwards (Huang et al., 2019, "GPipe: Efficient Training of Giant Neural Networks using
/// Pipeline Parallelism"). The bubble is (p - 1)(F + B), and every rank keeps the activations of all `m`
/// micro-batches, for every `m`.
///
/// # Errors
/// Counts of zero or far too many, and other than 1 stage per rank.
pub fn gpipe(shape: Shape) -> Result<Schedule, ScheduleError> {
    shape.check(Family::GPipe)?;
    let steps = (0..shape.ranks).map(|rank| {
        let mut writer = RankWriter::new(shape.micro_batches);
        (0..shape.micro_batches).for_each(|_| writer.forward(rank));
        (0..shape.micro_batches).for_each(|_| writer.backward(rank));
        writer.finish()
    });
    Schedule::new(shape.loops(), shape.micro_batches, steps.collect())
}
