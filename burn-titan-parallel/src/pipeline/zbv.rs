//! ZBV.

use super::writer::RankWriter;
use super::{Family, Schedule, ScheduleError, Shape};

/// Zero bubble with two stages per rank, placed as a V: rank 0 has the first stage and the last, so the loss is where
/// the input is (Qi et al., 2023, section 6, and Qi et al., 2024, "Pipeline Parallelism with Controllable Memory").
///
/// From `m` = `2p - 1` on, every rank keeps at most `2p` activations of one stage, as much as those of `p`
/// micro-batches, and where F = I = W no rank waits between its first step and its last: the bubble (p - 1)F is the
/// time until the first micro-batch comes down to the last rank, by which rank 0 ends earlier. With fewer
/// micro-batches it is the schedule of `2p - 1` without the rest.
///
/// # Errors
/// Counts of zero or far too many, and other than 2 stages per rank.
pub fn zbv(shape: Shape) -> Result<Schedule, ScheduleError> {
    shape.check(Family::ZeroBubbleV)?;
    let steps = (0..shape.ranks).map(|rank| {
        let (down, up) = (rank, 2 * shape.ranks - 1 - rank);
        let from_here = shape.ranks - rank;
        let micro_batches = shape.micro_batches.max(2 * shape.ranks - 1);
        let mut writer = RankWriter::new(shape.micro_batches);
        let backward = |writer: &mut RankWriter, stage| {
            writer.backward_input(stage);
            writer.backward_weight_of(stage);
        };
        // A micro-batch comes back up once it was at the last rank.
        (0..2 * from_here - 1).for_each(|_| writer.forward(down));
        for _ in 0..rank {
            writer.forward(up);
            writer.forward(down);
        }
        for _ in 0..from_here {
            writer.forward(up);
            backward(&mut writer, up);
        }
        // So many were sent down, and so many of them have come up.
        let (sent, returned) = (2 * from_here - 1 + rank, shape.ranks);
        for micro in returned..micro_batches {
            if micro - returned + sent < micro_batches {
                writer.forward(down);
            }
            backward(&mut writer, down);
            writer.forward(up);
            backward(&mut writer, up);
        }
        // Weights wait as long as an input's gradient is waited for.
        for _ in 0..rank {
            writer.backward_input(down);
            writer.backward_input(up);
        }
        for _ in 0..from_here {
            writer.backward_input(down);
            writer.backward_weight_of(down);
        }
        writer.finish()
    });
    Schedule::new(shape.descends_and_returns(), shape.micro_batches, steps.collect())
}
