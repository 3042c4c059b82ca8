//! How a model is cut into the stages of a pipeline, and in what order they run.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use burn_titan_parallel::pipeline::{CsvError, Fault, Schedule, ScheduleError, Shape, csv};
use burn_titan_parallel::step::Pipeline;
use burn_titan_parallel::{Axis, Mesh};
use thiserror::Error;

use super::start::micro_batches;
use crate::config::Config;
use crate::model::Model;

/// Why there is no pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PipelineError {
    /// The schedule does not take so many ranks, stages or micro-batches.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The schedule is wrong.
    #[error("the schedule is wrong: {0}")]
    Fault(#[from] Fault),
    /// The file of the schedule cannot be read.
    #[error("cannot read the schedule `{path}`: {cause}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        cause: String,
    },
    /// The file of the schedule holds something else.
    #[error("the schedule `{path}`: {cause}")]
    Csv {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: CsvError,
    },
    /// The file's schedule is for another run.
    #[error(
        "the schedule `{path}` is for {given} {what}, but the run has {wanted}: it needs a row for each rank, and \
         steps of each micro-batch"
    )]
    OtherRun {
        /// The file.
        path: String,
        /// Ranks or micro-batches.
        what: &'static str,
        /// Those of the file.
        given: usize,
        /// Those of the run.
        wanted: usize,
    },
    /// The model is too short.
    #[error("{stages} stages on {ranks} ranks, but the model has only {blocks} blocks")]
    Short {
        /// Ranks of the pipeline.
        ranks: usize,
        /// Stages in all.
        stages: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A unit that begins a stage is none of the model's, or comes out of order.
    #[error("`{unit}` begins no stage: expected {expected}")]
    Unit {
        /// The name.
        unit: String,
        /// What was expected.
        expected: String,
    },
    /// The stages that are given by hand are not as many as the ranks take.
    #[error("{given} stages are given by hand, but the schedule has {stages} on {ranks} ranks")]
    Number {
        /// Stages that are given.
        given: usize,
        /// Ranks of the pipeline.
        ranks: usize,
        /// Stages of the schedule.
        stages: usize,
    },
    /// Parameters tie more than one pair of stages together.
    #[error("parameters tie more than two stages together, which is not there yet")]
    Ties,
}

/// The pipeline of a run; `None` where each rank has the whole model.
///
/// # Errors
/// If the schedule, the stages and the model do not fit together.
pub(crate) fn pipeline(
    config: &Config,
    model: &Model,
    mesh: &Mesh,
) -> Result<Option<Pipeline>, PipelineError> {
    let ranks = mesh.degree(Axis::Pipeline);
    if ranks == 1 {
        return Ok(None);
    }
    let schedule = schedule(config, ranks, micro_batches(config, mesh))?;
    let stages = schedule.stages();
    let blocks = model.units.len().saturating_sub(2);
    if stages > blocks {
        return Err(PipelineError::Short { ranks, stages, blocks });
    }
    let first_units = &config.parallelism.pipeline_parallel_first_units;
    let stages = match first_units.is_empty() {
        true => {
            let costs = costs(model, config.training.seq_len);
            equal_stages(&costs.iter().map(UnitCost::forward).collect::<Vec<_>>(), stages)
        }
        false => {
            let given = first_units.len() + 1;
            if given != stages {
                return Err(PipelineError::Number { given, ranks, stages });
            }
            stages_from(model, first_units)?
        }
    };
    let lowered = schedule.lower()?;
    let pipeline = Pipeline { stages, schedule, lowered, ties: ties(model) };
    let apart = pipeline.ties.iter().filter(|[a, b]| pipeline.owner(*a) != pipeline.owner(*b));
    let mut pairs: Vec<_> = apart.map(|tie| tie.map(|unit| pipeline.owner(unit))).collect();
    pairs.dedup();
    if pairs.len() > 1 {
        return Err(PipelineError::Ties);
    }
    Ok(Some(pipeline))
}

/// What the config says of the order in which the ranks compute.
fn schedule(
    config: &Config,
    ranks: usize,
    micro_batches: usize,
) -> Result<Schedule, PipelineError> {
    let parallelism = &config.parallelism;
    let Some(family) = parallelism.pipeline_parallel_schedule.family() else {
        let file = parallelism.pipeline_parallel_schedule_csv.as_deref();
        return read_schedule(file.unwrap_or(Path::new("")), ranks, micro_batches);
    };
    let stages_per_rank = parallelism.pipeline_stages_per_rank(family);
    Ok(family.schedule(Shape { ranks, stages_per_rank, micro_batches })?)
}

/// The schedule in a file.
fn read_schedule(
    file: &Path,
    ranks: usize,
    micro_batches: usize,
) -> Result<Schedule, PipelineError> {
    let path = || file.display().to_string();
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|e| PipelineError::File { path: path(), cause: e.to_string() })?;
    let schedule = csv::parse(&text).map_err(|cause| PipelineError::Csv { path: path(), cause })?;
    for (what, given, wanted) in [
        ("ranks", schedule.ranks(), ranks),
        ("micro-batches", schedule.micro_batches(), micro_batches),
    ] {
        if given != wanted {
            return Err(PipelineError::OtherRun { path: path(), what, given, wanted });
        }
    }
    Ok(schedule)
}

/// Pairs of units that have a parameter together, the first that has it first.
fn ties(model: &Model) -> Vec<[usize; 2]> {
    let mut owners: HashMap<String, usize> = HashMap::new();
    let mut ties = Vec::new();
    for (number, unit) in model.units.iter().enumerate() {
        for spec in unit.parameters() {
            match owners.get(&spec.name) {
                Some(owner) => ties.push([*owner, number]),
                None => drop(owners.insert(spec.name, number)),
            }
        }
    }
    ties
}

/// Up to a factor, the floating-point operations of a unit's forward for a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct UnitCost {
    /// Products with weights.
    pub(crate) weights: f64,
    /// Products of activations.
    pub(crate) attention: f64,
}

impl UnitCost {
    /// All of them.
    pub(crate) fn forward(&self) -> f64 {
        self.weights + self.attention
    }
}

/// What each unit costs. The embedding costs next to nothing.
pub(crate) fn costs(model: &Model, seq_len: usize) -> Vec<UnitCost> {
    let last = model.units.len() - 1;
    let blocks = last.saturating_sub(1).max(1) as f64;
    let attention = 2.0 * model.attention_width as f64 / blocks * seq_len as f64;
    let elements = model.units.iter().map(|unit| model.active_elements(&**unit));
    let cost = |(number, elements): (usize, f64)| UnitCost {
        weights: if number == 0 { 1.0 } else { elements },
        attention: if number == 0 || number == last { 0.0 } else { attention },
    };
    elements.enumerate().map(cost).collect()
}

/// The cut into so many stages whose dearest is cheapest; of several, the one with the shortest stages last.
fn equal_stages(costs: &[f64], stages: usize) -> Vec<Range<usize>> {
    let units = costs.len();
    let mut sums = vec![0.0];
    for cost in costs {
        sums.push(sums[sums.len() - 1] + cost);
    }
    let cost = |start: usize, end: usize| sums[end] - sums[start];
    // The least cost of the dearest of the first stages, which end before a unit, and where the last of them begins.
    let mut best = vec![vec![(f64::INFINITY, 0); units + 1]; stages + 1];
    best[0][0] = (0.0, 0);
    for stage in 1..=stages {
        for end in stage..=units {
            for start in stage - 1..end {
                let dearest = best[stage - 1][start].0.max(cost(start, end));
                if dearest < best[stage][end].0 {
                    best[stage][end] = (dearest, start);
                }
            }
        }
    }
    let mut end = units;
    let mut ranges: Vec<Range<usize>> = (1..=stages)
        .rev()
        .map(|stage| {
            let start = best[stage][end].1;
            let range = start..end;
            end = start;
            range
        })
        .collect();
    ranges.reverse();
    ranges
}

/// The stages that begin with these units, the first of the model aside.
fn stages_from(model: &Model, first_units: &[String]) -> Result<Vec<Range<usize>>, PipelineError> {
    let mut starts = vec![0];
    for name in first_units {
        let after = starts[starts.len() - 1];
        let units = model.units.iter().enumerate().skip(after + 1);
        let found = units.clone().find(|(_, unit)| unit.name() == name);
        let Some((number, _)) = found else {
            let names: Vec<&str> = units.map(|(_, unit)| unit.name()).collect();
            let expected = match (names.first(), names.last()) {
                (Some(first), Some(last)) => format!("a unit from `{first}` to `{last}`"),
                _ => "no further stage".into(),
            };
            return Err(PipelineError::Unit { unit: name.clone(), expected });
        };
        starts.push(number);
    }
    let ends = starts.iter().copied().skip(1).chain([model.units.len()]);
    Ok(starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_as_equal_as_can_be() {
        let lengths = |costs: &[f64], stages| {
            let stages = equal_stages(costs, stages);
            assert_eq!(stages[0].start, 0);
            assert!(stages.windows(2).all(|pair| pair[0].end == pair[1].start));
            stages.iter().map(Range::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[1.0; 6], 3), [2, 2, 2]);
        // The head is worth two blocks.
        assert_eq!(lengths(&[0.1, 4.0, 4.0, 4.0, 4.0, 8.0], 2), [4, 2]);
        assert_eq!(lengths(&[0.1, 4.0, 4.0, 4.0, 4.0, 8.0], 6), [1; 6]);
        assert_eq!(lengths(&[5.0, 1.0, 1.0, 1.0], 2), [1, 3]);
    }
}
