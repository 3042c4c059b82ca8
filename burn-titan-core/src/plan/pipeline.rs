//! The time line that is planned of a pipeline.

use std::ops::Range;

use burn_titan_parallel::check::{Class, Footprint};
use burn_titan_parallel::pipeline::{Costs, Kind, SimulateError, StageCosts, draw, simulate};
use burn_titan_parallel::step::Pipeline;
use serde::Serialize;

use crate::config::{ActivationCheckpointMode, Config};
use crate::model::Model;
use crate::trainer::{UnitCost, costs};

/// Characters of the drawing's rows.
const COLUMNS: usize = 96;

/// A pipeline: its stages, and what its schedule makes of them where steps take as long as they have floating-point
/// operations, and messages no time.
#[derive(Debug, Clone, Serialize)]
pub struct PipelinePlan {
    /// Name of the schedule.
    pub schedule: String,
    /// The stages, in the order of the model.
    pub stages: Vec<StagePlan>,
    /// What each rank along `pp` holds at most.
    pub ranks: Vec<PipelineRank>,
    /// Units whose backward cannot be split, where the schedule would: it runs whole with its first half.
    pub not_split: Vec<String>,
    /// Part of the time in which a rank waits, on average.
    pub bubble: f64,
    /// The time line, one row a rank.
    pub drawing: String,
    /// The same as a picture.
    #[serde(skip)]
    pub svg: String,
}

/// A rank of a pipeline.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineRank {
    /// Bytes on its device at its peak.
    pub peak: u64,
    /// Most bytes of activations.
    pub activations: u64,
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
    /// `classes` and `footprints` are those of the ranks along `pp`.
    pub(super) fn new(
        config: &Config,
        model: &Model,
        pipeline: &Pipeline,
        classes: &[Class],
        footprints: &[Footprint],
    ) -> Result<Self, SimulateError> {
        let name = |unit: usize| model.units[unit].name().to_string();
        let splits =
            |unit: usize| classes[pipeline.owner(unit)].sizes.units[unit].activations.put_off > 0;
        let costs = UnitCosts::new(config, model, splits);
        let times = pipeline.stages.iter().map(|range| costs.stage(range.clone()));
        let line = simulate(&pipeline.schedule, &Costs::new(times.collect(), 0.0)?)?;
        let stages = pipeline.stages.iter().zip(&pipeline.lowered.owner);
        let stages = stages.map(|(range, rank)| StagePlan {
            rank: *rank,
            first: name(range.start),
            last: name(range.end - 1),
            work: costs.stage(range.clone()).forward,
        });
        let mut steps = pipeline.schedule.steps().iter().flatten();
        let two_halves = steps.any(|step| step.kind == Kind::BackwardWeight);
        let whole = (0..pipeline.units()).filter(|unit| two_halves && !splits(*unit));
        let schedule = config.parallelism.pipeline_parallel_schedule.name();
        Ok(Self {
            stages: stages.collect(),
            ranks: footprints.iter().map(PipelineRank::new).collect(),
            not_split: whole.map(name).collect(),
            bubble: line.mean_bubble(),
            drawing: draw::text(&line, COLUMNS),
            svg: draw::svg(&[(schedule, &line)]),
            schedule: schedule.into(),
        })
    }
}

impl PipelineRank {
    fn new(footprint: &Footprint) -> Self {
        let Footprint { peak, most, .. } = footprint;
        Self { peak: peak.memory.total(), activations: most.activations }
    }
}

/// What the units' steps cost, as parts of the forward of the whole model.
struct UnitCosts(Vec<StageCosts>);

impl UnitCosts {
    /// `splits` says of each unit whether its backward can be split.
    fn new(config: &Config, model: &Model, splits: impl Fn(usize) -> bool) -> Self {
        let units = costs(model, config.training.seq_len);
        let total: f64 = units.iter().map(UnitCost::forward).sum();
        let recomputes = config.activation_checkpoint.mode == ActivationCheckpointMode::Full;
        let last = units.len() - 1;
        let unit = |(number, cost): (usize, &UnitCost)| {
            let forward = cost.forward() / total;
            // The gradients of the weights take as long as the products with them.
            let backward_weight = if splits(number) { cost.weights / total } else { 0.0 };
            let again = if recomputes && number < last { forward } else { 0.0 };
            let backward = again + 2.0 * forward;
            StageCosts {
                forward,
                backward,
                backward_input: backward - backward_weight,
                backward_weight,
            }
        };
        Self(units.iter().enumerate().map(unit).collect())
    }

    /// Of the units of a stage together.
    fn stage(&self, units: Range<usize>) -> StageCosts {
        let sum = |of: fn(&StageCosts) -> f64| self.0[units.clone()].iter().map(of).sum();
        StageCosts {
            forward: sum(|unit| unit.forward),
            backward: sum(|unit| unit.backward),
            backward_input: sum(|unit| unit.backward_input),
            backward_weight: sum(|unit| unit.backward_weight),
        }
    }
}
