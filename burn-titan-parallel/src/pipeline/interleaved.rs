//! Interleaved 1F1B.

use super::writer::RankWriter;
use super::{Family, Schedule, ScheduleError, Shape};

/// Interleaved 1F1B: micro-batches go through a rank's stages in groups (Narayanan et al., 2021, "Efficient
/// Large-Scale Language Model Training on GPU Clusters Using Megatron-LM"). With 1 stage per rank it is 1F1B.
///
/// There, groups have `p` micro-batches, and `m` must be a multiple of `p`. Here a step has ⌊m / p⌋ groups as equal
/// as can be, of at most g = ⌈m / ⌊m / p⌋⌉ < 2p. With that the bubble is (p - 1)(F + B) of one stage, `v` times less
/// than that of the same model in `p` stages, for every `m` from `p` on. Where `v` > 1, rank `r` keeps the
/// activations of at most (v - 1)g + 2(p - r) - 1 micro-batches of one stage.
///
/// # Errors
/// Counts of zero or far too many.
pub fn interleaved(shape: Shape) -> Result<Schedule, ScheduleError> {
    shape.check(Family::Interleaved)?;
    let steps = (0..shape.ranks).map(|rank| {
        let order = Order::new(shape, rank);
        let mut writer = RankWriter::new(shape.micro_batches);
        let (ahead, rest) = order.forwards.split_at(order.ahead);
        let (beside, last) = order.backwards.split_at(rest.len());
        ahead.iter().for_each(|stage| writer.forward(*stage));
        for (forward, backward) in rest.iter().zip(beside) {
            writer.forward(*forward);
            writer.backward(*backward);
        }
        last.iter().for_each(|stage| writer.backward(*stage));
        writer.finish()
    });
    Schedule::new(shape.loops(), shape.micro_batches, steps.collect())
}

/// In what order a rank visits its stages.
pub(super) struct Order {
    /// The stages of its forwards.
    pub forwards: Vec<usize>,
    /// The stages of its backwards, as many.
    pub backwards: Vec<usize>,
    /// Forwards before the first backward, less one.
    pub ahead: usize,
}

impl Order {
    pub fn new(shape: Shape, rank: usize) -> Self {
        let Shape { ranks, stages_per_rank, micro_batches } = shape;
        let rounds = (micro_batches / ranks).max(1);
        // The groups are as equal as can be, the larger ones first.
        let groups: Vec<usize> =
            (0..rounds).map(|round| (micro_batches + rounds - 1 - round) / rounds).collect();
        let mine: Vec<usize> = (rank..shape.stages()).step_by(ranks).collect();
        let visits = |stages: &[usize]| -> Vec<usize> {
            groups
                .iter()
                .flat_map(|size| stages.iter().flat_map(|stage| vec![*stage; *size]))
                .collect()
        };
        let forwards = visits(&mine);
        let backwards = visits(&mine.iter().rev().copied().collect::<Vec<_>>());
        let after = ranks - 1 - rank;
        // A rank that comes round needs time for the way there and back.
        let ahead = if stages_per_rank == 1 {
            after
        } else {
            (stages_per_rank - 1) * groups[0] + 2 * after
        };
        Self { ahead: ahead.min(forwards.len()), forwards, backwards }
    }
}
