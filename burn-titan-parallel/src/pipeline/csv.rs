//! Schedules in files: PyTorch's format, which torchtitan reads as `pipeline_parallel_schedule_csv`.
//!
//! One row a rank and one cell a step: the stage, the letter of the kind ([`Kind`]) and the micro-batch, as in
//! `0F0,0F1,,0B0,0B1`. An empty cell is a moment in which the rank waits: it is there for the reader's eye and says
//! nothing, since ranks wait for what they need. PyTorch's `(0F1;3B0)OVERLAP_F_B`, a forward beside a backward, is
//! read as its two steps. A file says only what is computed; messages follow from it ([`Schedule::lower`]).

use std::collections::HashMap;

use thiserror::Error;

use super::fault::Fault;
use super::prove::check_steps;
use super::schedule::{Kind, Schedule, ScheduleError, Step};
use super::simulate::{Costs, StageCosts, run};

/// What is wrong with a file, in rows and columns from 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CsvError {
    /// A cell that is no step.
    #[error(
        "row {row}, column {column}: {cell:?} is no step; write the stage, F, B, I or W, and the micro-batch, as in \
         1F0, and leave out sends, receives and the like, which follow from it"
    )]
    Cell {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// What it holds.
        cell: String,
    },
    /// A row without steps before others.
    #[error("row {row} has no step: each rank, one a row, needs a stage")]
    EmptyRow {
        /// The row.
        row: usize,
    },
    /// A stage on two ranks.
    #[error(
        "row {row}, column {column}: {step} is a step of stage {}, which row {first} has: a stage belongs to one rank",
        step.stage
    )]
    TwoOwners {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// The step.
        step: Step,
        /// The first row that has the stage.
        first: usize,
    },
    /// A stage or micro-batch far beyond what can be run.
    #[error(
        "row {row}, column {column}: {step} is beyond the {most} stages or micro-batches that there can be; count \
         both from 0"
    )]
    TooLarge {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// The step.
        step: Step,
        /// Most stages, and most micro-batches.
        most: usize,
    },
    /// A stage that no rank has.
    #[error(
        "no row has stage {stage}, and there are steps of stage {last}: stages count from 0 without a gap"
    )]
    NoOwner {
        /// The stage.
        stage: usize,
        /// The last stage.
        last: usize,
    },
    /// There is nothing in it.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

/// Most stages of a file, and most micro-batches.
const MOST: usize = 1 << 16;

/// The schedule in `text`. Stages and micro-batches are as many as it names; whether it is right is for
/// [`Schedule::lower`] to say.
///
/// # Errors
/// A cell that is no step, a stage on two ranks or none, a rank without steps, or nothing at all.
pub fn parse(text: &str) -> Result<Schedule, CsvError> {
    let mut owner: HashMap<usize, usize> = HashMap::new();
    let mut steps = Vec::new();
    let mut micro_batches = 0;
    for (index, line) in text.trim_start_matches('\u{feff}').trim_end().lines().enumerate() {
        let row = index + 1;
        let mut mine = Vec::new();
        for (index, cell) in line.split(',').enumerate() {
            let column = index + 1;
            let read = parse_cell(cell).ok_or_else(|| CsvError::Cell {
                row,
                column,
                cell: cell.trim().chars().take(40).collect(),
            })?;
            for step in read {
                if step.stage.max(step.micro) >= MOST {
                    return Err(CsvError::TooLarge { row, column, step, most: MOST });
                }
                let first = *owner.entry(step.stage).or_insert(row);
                if first != row {
                    return Err(CsvError::TwoOwners { row, column, step, first });
                }
                micro_batches = micro_batches.max(step.micro + 1);
                mine.push(step);
            }
        }
        if mine.is_empty() {
            return Err(CsvError::EmptyRow { row });
        }
        steps.push(mine);
    }
    let last = owner.keys().copied().max().unwrap_or(0);
    let rank_of = |stage| owner.get(&stage).map(|row| row - 1);
    let owner: Option<Vec<usize>> = (0..owner.len()).map(rank_of).collect();
    match owner {
        Some(owner) => Ok(Schedule::new(owner, micro_batches, steps)?),
        None => {
            let stage = (0..last).find(|stage| rank_of(*stage).is_none()).unwrap_or(0);
            Err(CsvError::NoOwner { stage, last })
        }
    }
}

/// The steps of a cell, or none if it is wrong.
fn parse_cell(cell: &str) -> Option<Vec<Step>> {
    let cell = cell.trim();
    let cell = cell.strip_prefix('"').and_then(|cell| cell.strip_suffix('"')).unwrap_or(cell);
    if cell.is_empty() {
        return Some(Vec::new());
    }
    match cell.strip_prefix('(') {
        Some(pair) => pair
            .strip_suffix(")OVERLAP_F_B")?
            .split(';')
            .map(|cell| parse_step(cell.trim()))
            .collect(),
        None => Some(vec![parse_step(cell)?]),
    }
}

fn parse_step(cell: &str) -> Option<Step> {
    let kind = Kind::ALL.into_iter().find(|kind| cell.contains(kind.letter()))?;
    let (stage, micro) = cell.split_once(kind.letter())?;
    Some(Step { kind, stage: parse_number(stage)?, micro: parse_number(micro)? })
}

/// Digits and nothing else; `usize` would take a sign.
fn parse_number(digits: &str) -> Option<usize> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// `schedule` as a file that [`parse`] reads. Columns are moments, if every step takes one.
///
/// # Errors
/// The schedule comes to no end.
pub fn write(schedule: &Schedule) -> Result<String, Fault> {
    let moment =
        StageCosts { forward: 1.0, backward: 1.0, backward_input: 1.0, backward_weight: 1.0 };
    check_steps(schedule)?;
    let line = run(schedule, &Costs::uniform(schedule.stages(), moment))?;
    let columns = line.makespan().round() as usize;
    let mut text = String::new();
    for spans in &line.ranks {
        let mut cells = vec![String::new(); columns];
        for span in spans {
            cells[span.start.round() as usize] = span.step.to_string();
        }
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    Ok(text)
}
