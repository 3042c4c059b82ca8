//! Programs of the ranks of a pipeline.

use std::ops::Range;

use super::{Strategy, Visit, write};
use crate::pipeline::{Kind, Lowered, Message, Operation, Schedule, Step, Value};
use crate::program::{Action, Keep, Program};

/// A model cut into stages, and the order in which the ranks run them.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The units of each stage, in the order of the model; together all of them.
    pub stages: Vec<Range<usize>>,
    /// What each rank computes, in order.
    pub schedule: Schedule,
    /// The same with the messages between ranks.
    pub lowered: Lowered,
    /// Pairs of units that have a parameter together, the one that owns it first.
    pub ties: Vec<[usize; 2]>,
}

impl Pipeline {
    /// Units of the model.
    pub fn units(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.end)
    }

    /// The rank that has a unit.
    pub fn owner(&self, unit: usize) -> usize {
        let stage = self.stages.iter().position(|stage| stage.contains(&unit));
        stage.map_or(0, |stage| self.lowered.owner[stage])
    }

    /// Which units a rank has.
    pub fn owned(&self, rank: usize) -> Vec<bool> {
        (0..self.units()).map(|unit| self.owner(unit) == rank).collect()
    }

    /// The two ranks that have a parameter together, if any have.
    pub fn tied_ranks(&self) -> Option<[usize; 2]> {
        let ranks = self.ties.iter().map(|tie| tie.map(|unit| self.owner(unit)));
        ranks.into_iter().find(|[a, b]| a != b)
    }

    /// The units of a rank that have a parameter together with one on another rank.
    pub fn tied(&self, rank: usize) -> Vec<usize> {
        let apart = self.ties.iter().filter(|[a, b]| self.owner(*a) != self.owner(*b)).flatten();
        let mut tied: Vec<usize> =
            apart.copied().filter(|unit| self.owner(*unit) == rank).collect();
        tied.sort_unstable();
        tied.dedup();
        tied
    }

    /// The action that sends a message.
    pub(super) fn sending(&self, message: Message) -> Action {
        let Range { start, end } = self.stages[message.stage];
        let micro = message.micro;
        match message.value {
            Value::Activation => Action::SendActivation { unit: end - 1, micro },
            Value::Gradient => Action::SendGradient { unit: start - 1, micro },
        }
    }

    /// The action that receives a message.
    pub(super) fn receiving(&self, message: Message) -> Action {
        let Range { start, end } = self.stages[message.stage];
        let micro = message.micro;
        match message.value {
            Value::Activation => Action::ReceiveActivation { unit: end - 1, micro },
            Value::Gradient => Action::ReceiveGradient { unit: start - 1, micro },
        }
    }
}

/// The training step of a rank: its stages in the order of the schedule, with the messages between them. Units of a
/// stage are gathered, resharded and reduced as without a pipeline.
pub fn pipelined(pipeline: &Pipeline, rank: usize, strategy: &Strategy) -> Program {
    let operations = &pipeline.lowered.operations[rank];
    let mut writer = Stages { pipeline, strategy, visits: Vec::new(), messages: Vec::new() };
    for (at, operation) in operations.iter().enumerate() {
        match *operation {
            Operation::Compute(step) => writer.compute(step, &operations[at + 1..]),
            Operation::Send { message, .. } => writer.messages.push(pipeline.sending(message)),
            Operation::Receive { message, .. } => writer.messages.push(pipeline.receiving(message)),
        }
    }
    let Stages { visits, messages, .. } = writer;
    write(pipeline.owned(rank), visits, messages, &pipeline.tied(rank), strategy)
}

struct Stages<'a> {
    pipeline: &'a Pipeline,
    strategy: &'a Strategy,
    visits: Vec<Visit>,
    /// Since the last visit.
    messages: Vec<Action>,
}

impl Stages<'_> {
    fn compute(&mut self, step: Step, later: &[Operation]) {
        let Step { kind, stage, micro } = step;
        let units = self.pipeline.stages[stage].clone();
        let last = self.pipeline.units() - 1;
        let recomputes = |unit: usize| self.strategy.recompute && unit < last;
        // The last backward of the stage, or its last part.
        let again = |operation: &Operation| {
            matches!(operation, Operation::Compute(other)
                if other.stage == stage && other.kind.frees_activations())
        };
        let reduce = kind.frees_activations()
            && (self.strategy.reduce_every_micro_batch || !later.iter().any(again));
        let visit = |unit: usize| {
            let compute = match kind {
                Kind::Forward => {
                    let keep = if recomputes(unit) { Keep::Input } else { Keep::Graph };
                    vec![Action::Forward { unit, micro, keep }]
                }
                Kind::Backward | Kind::BackwardInput => {
                    let again = Action::Forward { unit, micro, keep: Keep::Graph };
                    let mut compute = if recomputes(unit) { vec![again] } else { vec![] };
                    compute.push(match kind {
                        Kind::Backward => Action::Backward { unit, micro },
                        _ => Action::BackwardInput { unit, micro },
                    });
                    compute
                }
                Kind::BackwardWeight => vec![Action::BackwardWeight { unit, micro }],
            };
            // What the gradients of the weights need was kept with what was put off.
            let needs_parameters = kind != Kind::BackwardWeight;
            Visit { reduce, needs_parameters, ..Visit::new(unit, compute) }
        };
        let mut visits: Vec<Visit> = match kind {
            Kind::Forward => units.map(visit).collect(),
            _ => units.rev().map(visit).collect(),
        };
        if let Some(first) = visits.first_mut() {
            first.messages = std::mem::take(&mut self.messages);
        }
        self.visits.extend(visits);
    }
}
