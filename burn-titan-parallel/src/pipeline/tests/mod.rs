//! Tests of schedules, by what they are about.

mod families;
mod faults;
mod files;
mod lines;

use super::*;

fn shape(ranks: usize, stages_per_rank: usize, micro_batches: usize) -> Shape {
    Shape { ranks, stages_per_rank, micro_batches }
}

/// Times that whole numbers hold exactly.
fn costs(forward: f64, backward_input: f64, backward_weight: f64) -> StageCosts {
    let backward = backward_input + backward_weight;
    StageCosts { forward, backward, backward_input, backward_weight }
}

fn line(schedule: &Schedule, costs: StageCosts) -> TimeLine {
    let costs = Costs::new(vec![costs; schedule.stages()], 0.0).unwrap();
    simulate(schedule, &costs).unwrap()
}
