//! ZB1P.

use super::interleaved::Order;
use super::writer::RankWriter;
use super::{Family, Schedule, ScheduleError, Shape};

/// Zero bubble with the memory of 1F1B, ZB1P or ZB-H1: 1F1B whose backwards are split, where rank `r` puts off the
/// last `r` backwards for weights, since the ranks after it would idle at the end without (Qi et al., 2023, "Zero
/// Bubble Pipeline Parallelism"). With several stages per rank it is interleaved 1F1B split in the same way.
///
/// The bubble is (p - 1)(F + I - W) of one stage for every `m` from `p` on, where F and I are no less than W. With 1
/// stage per rank, every rank keeps the activations of at most `p` micro-batches; with several, from `m` = `2p` on, rank
/// `r` keeps `r` more than in interleaved 1F1B.
///
/// # Errors
/// Counts of zero or far too many.
pub fn zero_bubble(shape: Shape) -> Result<Schedule, ScheduleError> {
    shape.check(Family::ZeroBubble)?;
    let steps = (0..shape.ranks).map(|rank| {
        let order = Order::new(shape, rank);
        let mut writer = RankWriter::new(shape.micro_batches);
        let (ahead, rest) = order.forwards.split_at(order.ahead);
        let mut rest = rest.iter();
        ahead.iter().for_each(|stage| writer.forward(*stage));
        for backward in order.backwards {
            rest.next().into_iter().for_each(|stage| writer.forward(*stage));
            writer.backward_input(backward);
            if writer.pending() > rank {
                writer.backward_weight();
            }
        }
        writer.finish()
    });
    Schedule::new(shape.loops(), shape.micro_batches, steps.collect())
}
