//! Writing programs.
//!
//! The data-parallel family is one writer with two choices. Every rank keeps its shard of each parameter, its
//! gradient and its optimizer state at all times; what differs is how long the full ones live:
//!
//! | strategy | parameters after the forward | gradients are reduced |
//! |---|---|---|
//! | DDP | kept (nothing is sharded) | after the last micro-batch |
//! | ZeRO-1 (Rajbhandari et al., 2020) | kept | after the last micro-batch |
//! | ZeRO-2 | kept | after every micro-batch |
//! | ZeRO-3, FSDP (Zhao et al., 2023) | freed | after every micro-batch |
//!
//! HSDP is any of them with copies: what was reduced over the ranks that share the parameters is summed over
//! the copies of the model.

mod pipeline;
mod time_line;

pub use pipeline::{Pipeline, pipelined};
pub use time_line::{ideal, time_line};

use crate::program::{Action, Keep, Program};

/// How a training step is spread over data-parallel ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strategy {
    /// Micro-batches of the step on each rank.
    pub micro_batches: usize,
    /// Whether units keep only their input and run forward again before their backward (full activation
    /// checkpointing, Chen et al., 2016). The last unit, which ends in the loss, always keeps its graph.
    pub recompute: bool,
    /// Whether a unit's full parameters are freed after each use, and not after the last of the step. A graph
    /// that is kept holds them all the same, so this needs `recompute`.
    pub reshard_after_forward: bool,
    /// Whether gradients are reduced after every micro-batch, and not after the last.
    pub reduce_every_micro_batch: bool,
    /// Copies of the sharded model.
    pub replicas: usize,
    /// Whether ranks split the units' matrix products: parameters that several of them have are reduced once more.
    pub split: bool,
    /// Whether the model has experts, whose loads are summed.
    pub experts: bool,
}

impl Default for Strategy {
    /// One rank, one micro-batch, everything kept.
    fn default() -> Self {
        Self {
            micro_batches: 1,
            recompute: false,
            reshard_after_forward: false,
            reduce_every_micro_batch: false,
            replicas: 1,
            split: false,
            experts: false,
        }
    }
}

/// A training step: every micro-batch runs forward through all units and backward again. The next unit's
/// parameters are gathered while a unit computes, and a unit's gradients are reduced while the unit before it
/// runs its backward.
pub fn training(units: usize, strategy: &Strategy) -> Program {
    let visits = (0..strategy.micro_batches).flat_map(|micro| visits(units, micro, strategy));
    write(vec![true; units], visits.collect(), vec![], &[], strategy)
}

/// Writes the program of these visits in this order, and of `last`, what is to be sent after them. The gradients of
/// `tied` units are reduced at the end, for another stage has a part in them.
fn write(
    owned: Vec<bool>,
    visits: Vec<Visit>,
    last: Vec<Action>,
    tied: &[usize],
    strategy: &Strategy,
) -> Program {
    let units = owned.len();
    let mut writer = Writer {
        parameters: vec![Parameters::Sharded; units],
        in_flight: Vec::new(),
        actions: Vec::new(),
        replicated: strategy.replicas > 1,
        split: strategy.split,
    };
    for (i, visit) in visits.iter().enumerate() {
        let mut rest = visits[i + 1..].iter().filter(|later| later.needs_parameters);
        writer.actions.extend(&visit.messages);
        if visit.needs_parameters {
            let next = rest.next().map(|next| next.unit);
            writer.gather(visit.unit);
            if let Some(next) = next {
                writer.gather(next);
            }
            writer.unshard(visit.unit);
            writer.actions.extend(&visit.compute);
            let stays = next == Some(visit.unit)
                || (!strategy.reshard_after_forward && rest.any(|later| later.unit == visit.unit));
            if !stays {
                writer.reshard(visit.unit);
            }
        } else {
            writer.actions.extend(&visit.compute);
        }
        if visit.reduce && !tied.contains(&visit.unit) {
            writer.reduce(visit.unit);
        }
    }
    writer.actions.extend(last);
    for unit in tied {
        writer.actions.push(Action::SumTiedGradients { unit: *unit });
        writer.reduce(*unit);
    }
    writer.finish();
    if strategy.experts {
        writer.actions.push(Action::SumExpertLoads);
    }
    writer.actions.extend([Action::ClipGradientNorm, Action::OptimizerStep]);
    Program { units, owned, micro_batches: strategy.micro_batches, actions: writer.actions }
}

/// A forward of one micro-batch through all units, for validation and inference.
pub fn inference(units: usize) -> Program {
    inference_of(&vec![true; units])
}

/// As [`inference`], of the units that a rank has: the others' outputs come from other ranks.
pub fn inference_of(owned: &[bool]) -> Program {
    let mut actions = Vec::new();
    let own: Vec<usize> = (0..owned.len()).filter(|unit| owned[*unit]).collect();
    for (i, unit) in own.iter().copied().enumerate() {
        if i == 0 {
            actions.push(Action::Gather { unit });
        }
        if let Some(next) = own.get(i + 1) {
            actions.push(Action::Gather { unit: *next });
        }
        if unit > 0 && !owned[unit - 1] {
            actions.push(Action::ReceiveActivation { unit: unit - 1, micro: 0 });
        }
        actions.extend([
            Action::Unshard { unit },
            Action::Forward { unit, micro: 0, keep: Keep::Nothing },
            Action::Reshard { unit },
        ]);
        if owned.get(unit + 1) == Some(&false) {
            actions.push(Action::SendActivation { unit, micro: 0 });
        }
    }
    Program { units: owned.len(), owned: owned.to_vec(), micro_batches: 1, actions }
}

/// What is computed on a unit while its parameters are there.
struct Visit {
    /// What is sent and received before.
    messages: Vec<Action>,
    unit: usize,
    compute: Vec<Action>,
    /// Whether the unit's full parameters must be there.
    needs_parameters: bool,
    /// Whether its gradients are reduced afterwards.
    reduce: bool,
}

impl Visit {
    fn new(unit: usize, compute: Vec<Action>) -> Self {
        Self { messages: vec![], unit, compute, needs_parameters: true, reduce: false }
    }
}

/// One micro-batch: forward through all units and backward again.
fn visits(units: usize, micro: usize, strategy: &Strategy) -> Vec<Visit> {
    let recomputes = |unit: usize| strategy.recompute && unit + 1 < units;
    let forward = (0..units).map(|unit| {
        let keep = if recomputes(unit) { Keep::Input } else { Keep::Graph };
        Visit::new(unit, vec![Action::Forward { unit, micro, keep }])
    });
    let reduce = strategy.reduce_every_micro_batch || micro + 1 == strategy.micro_batches;
    let backward = (0..units).rev().map(|unit| {
        let again = Action::Forward { unit, micro, keep: Keep::Graph };
        let mut compute = if recomputes(unit) { vec![again] } else { vec![] };
        compute.push(Action::Backward { unit, micro });
        Visit { reduce, ..Visit::new(unit, compute) }
    });
    forward.chain(backward).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameters {
    Sharded,
    Gathering,
    Full,
}

/// What is on its way between the ranks while actions are written.
struct Writer {
    parameters: Vec<Parameters>,
    /// Units whose gradients are being reduced, oldest first, and whether they are summed over the copies of
    /// the model already.
    in_flight: Vec<(usize, bool)>,
    actions: Vec<Action>,
    replicated: bool,
    split: bool,
}

impl Writer {
    fn gather(&mut self, unit: usize) {
        if self.parameters[unit] == Parameters::Sharded {
            self.parameters[unit] = Parameters::Gathering;
            self.actions.push(Action::Gather { unit });
        }
    }

    fn unshard(&mut self, unit: usize) {
        if self.parameters[unit] == Parameters::Gathering {
            self.parameters[unit] = Parameters::Full;
            self.actions.push(Action::Unshard { unit });
        }
    }

    fn reshard(&mut self, unit: usize) {
        self.parameters[unit] = Parameters::Sharded;
        self.actions.push(Action::Reshard { unit });
    }

    /// Begins a unit's reduction, and brings those under way one stage further: they ran while the unit
    /// computed.
    fn reduce(&mut self, unit: usize) {
        // A unit's gradients are reduced by one operation at a time.
        while self.in_flight.iter().any(|(other, _)| *other == unit) {
            self.advance();
        }
        if self.split {
            self.actions.push(Action::SumPartialGradients { unit });
        }
        self.actions.push(Action::ReduceGradients { unit });
        self.advance();
        self.in_flight.push((unit, !self.replicated));
    }

    fn advance(&mut self) {
        for (unit, summed) in std::mem::take(&mut self.in_flight) {
            if summed {
                self.actions.push(Action::AwaitGradients { unit });
            } else {
                self.actions.push(Action::AllReduceGradients { unit });
                self.in_flight.push((unit, true));
            }
        }
    }

    fn finish(&mut self) {
        while !self.in_flight.is_empty() {
            self.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(strategy: Strategy) -> String {
        let program = training(2, &strategy).to_string();
        program.lines().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_step_of_one_micro_batch() {
        assert_eq!(
            printed(Strategy::default()),
            "Gather(0) Gather(1) Unshard(0) Forward(0, 0, Graph) Unshard(1) Forward(1, 0, Graph) \
             Backward(1, 0) Reshard(1) ReduceGradients(1) Backward(0, 0) Reshard(0) ReduceGradients(0) \
             AwaitGradients(1) AwaitGradients(0) ClipGradientNorm OptimizerStep"
        );
    }

    #[test]
    fn copies_of_a_model_whose_parameters_are_freed() {
        let strategy = Strategy {
            recompute: true,
            reshard_after_forward: true,
            replicas: 2,
            ..Strategy::default()
        };
        assert_eq!(
            printed(strategy),
            "Gather(0) Gather(1) Unshard(0) Forward(0, 0, Input) Reshard(0) \
             Unshard(1) Forward(1, 0, Graph) Gather(0) Backward(1, 0) Reshard(1) ReduceGradients(1) \
             Unshard(0) Forward(0, 0, Graph) Backward(0, 0) Reshard(0) ReduceGradients(0) \
             AllReduceGradients(1) AwaitGradients(1) AllReduceGradients(0) AwaitGradients(0) \
             ClipGradientNorm OptimizerStep"
        );
    }
}
