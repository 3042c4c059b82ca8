//! Looped breadth-first.

use super::writer::RankWriter;
use super::{Family, Schedule, ScheduleError, Shape};

/// Breadth-first: a rank runs all micro-batches through one of its stages before it turns to the next
/// (Lamy-Poirier, 2023, "Breadth-First Pipeline Parallelism"). With FSDP a stage of one unit is gathered once a
/// pass, and not once a micro-batch.
///
/// The bubble is (p - 1)(F + B) of one stage from `m` = `p` on, where a round takes as long as a micro-batch needs
/// to come round; every rank keeps the activations of all `m` micro-batches of its stages.
///
/// # Errors
/// Counts of zero or far too many.
pub fn looped_bfs(shape: Shape) -> Result<Schedule, ScheduleError> {
    shape.check(Family::LoopedBreadthFirst)?;
    let steps = (0..shape.ranks).map(|rank| {
        let mut writer = RankWriter::new(shape.micro_batches);
        let stages = || (rank..shape.stages()).step_by(shape.ranks);
        for stage in stages() {
            (0..shape.micro_batches).for_each(|_| writer.forward(stage));
        }
        for stage in stages().rev() {
            (0..shape.micro_batches).for_each(|_| writer.backward(stage));
        }
        writer.finish()
    });
    Schedule::new(shape.loops(), shape.micro_batches, steps.collect())
}
