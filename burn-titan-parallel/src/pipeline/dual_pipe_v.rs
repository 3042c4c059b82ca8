//! DualPipeV.

use super::writer::RankWriter;
use super::{Family, Schedule, ScheduleError, Shape};

/// DualPipe (DeepSeek-AI, 2024, "DeepSeek-V3 Technical Report", section 3.2.1) cut in half, two stages per rank placed
/// as a V (Sea AI Lab, 2025, "DualPipe could be better without the Dual"; github.com/deepseek-ai/DualPipe). In the
/// main phase a forward of one stage stands right before a backward of the other: nothing of one depends on the
/// other, so that the messages of one can run beside the computation of the other.
///
/// From `m` = `2p` on, every rank keeps at most `2p + 1` activations of one stage. Where F = I = W, the bubble is
/// (p - 1)(F&B + B - 3W) if a forward beside a backward is one step of time F&B, which hands on both results at its
/// end, and (p - 1)(F + I - W) if they run one after the other, since the forward's output then leaves earlier. With
/// fewer micro-batches it is the schedule of `2p` without the rest.
///
/// # Errors
/// Counts of zero or far too many, and other than 2 stages per rank.
pub fn dual_pipe_v(shape: Shape) -> Result<Schedule, ScheduleError> {
    shape.check(Family::DualPipeV)?;
    let steps = (0..shape.ranks).map(|rank| {
        let (down, up) = (rank, 2 * shape.ranks - 1 - rank);
        let after = shape.ranks - 1 - rank;
        let micro_batches = shape.micro_batches.max(2 * shape.ranks);
        let mut writer = RankWriter::new(shape.micro_batches);
        (0..2 * after).for_each(|_| writer.forward(down));
        for _ in 0..rank + 1 {
            writer.forward(down);
            writer.forward(up);
        }
        for _ in 0..after {
            writer.backward_input(up);
            writer.backward_weight();
            writer.forward(up);
        }
        for _ in 0..micro_batches - 2 * shape.ranks + rank + 1 {
            writer.forward(down);
            writer.backward(up);
            writer.forward(up);
            writer.backward(down);
        }
        for _ in 0..after {
            writer.backward(up);
            writer.forward(up);
            writer.backward(down);
        }
        // The second half of the last backwards is split; their weights fill the gaps after.
        for i in 0..2 * (rank + 1) {
            let stage = if i % 2 == 0 { up } else { down };
            if i <= rank { writer.backward(stage) } else { writer.backward_input(stage) }
        }
        for _ in 0..after {
            writer.backward_weight();
            writer.backward_input(down);
        }
        writer.finish()
    });
    Schedule::new(shape.descends_and_returns(), shape.micro_batches, steps.collect())
}
