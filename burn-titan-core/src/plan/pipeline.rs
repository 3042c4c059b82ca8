//! The time line that is planned of a pipeline.

use burn_titan_parallel::pipeline::{Costs, SimulateError, StageCosts, draw, simulate};
use burn_titan_parallel::step::Pipeline;
use serde::Serialize;

use crate::config::Config;
use crate::model::Model;
use crate::trainer::costs;

/// Characters of the drawing's rows.
const COLUMNS: usize = 96;

/// A pipeline: its stages, and what its schedule makes of them where a forward and each half of a backward take as
/// long as they have floating-point operations, and messages no time.
#[derive(Debug, Clone, Serialize)]
pub struct PipelinePlan {
    /// Name of the schedule.
    pub schedule: String,
    /// The stages, in the order of the model.
    pub stages: Vec<StagePlan>,
    /// Part of the time in which a rank waits, on average.
    pub bubble: f64,
    /// The time line, one row a rank.
    pub drawing: String,
    /// The same as a picture.
    #[serde(skip)]
    pub svg: String,
}

/// A stage of a pipeline.
#[derive(Debug, Clone, Serialize)]
pub struct StagePlan {
    /// The rank that has it, along `pp`.
    pub rank: usize,
    /// Its first unit.
    pub first: String,
    /// Its last unit.
    pub last: String,
    /// Its part of the floating-point operations of the model.
    pub work: f64,
}

impl PipelinePlan {
    pub(super) fn new(
        config: &Config,
        model: &Model,
        pipeline: &Pipeline,
    ) -> Result<Self, SimulateError> {
        let units = costs(model, config.training.seq_len);
        let total: f64 = units.iter().sum();
        let work = |range: &std::ops::Range<usize>| units[range.clone()].iter().sum::<f64>();
        let times = pipeline.stages.iter().map(|range| {
            let forward = work(range) / total;
            StageCosts {
                forward,
                backward: 2.0 * forward,
                backward_input: forward,
                backward_weight: forward,
            }
        });
        let line = simulate(&pipeline.schedule, &Costs::new(times.collect(), 0.0)?)?;
        let schedule = config.parallelism.pipeline_parallel_schedule.family().name().to_string();
        let stages = pipeline.stages.iter().zip(&pipeline.lowered.owner);
        let name = |unit: usize| model.units[unit].name().to_string();
        let stages = stages.map(|(range, rank)| StagePlan {
            rank: *rank,
            first: name(range.start),
            last: name(range.end - 1),
            work: work(range) / total,
        });
        Ok(Self {
            stages: stages.collect(),
            bubble: line.mean_bubble(),
            drawing: draw::text(&line, COLUMNS),
            svg: draw::svg(&schedule, &line),
            schedule,
        })
    }
}
