//! The time line of a schedule at given costs.
//!
//! A rank runs its steps in order and begins each as soon as it is done with the one before and the step's input is
//! there. Messages go beside the computation and take a given time.

use thiserror::Error;

use super::fault::{Fault, Waiting};
use super::lower::{Message, Operation};
use super::prove::check_steps;
use super::schedule::{Kind, Schedule, Step};

/// The time that the steps of one stage take on one micro-batch, in any unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageCosts {
    /// Of a forward.
    pub forward: f64,
    /// Of a whole backward.
    pub backward: f64,
    /// Of a backward for the input.
    pub backward_input: f64,
    /// Of a backward for the weights.
    pub backward_weight: f64,
}

impl StageCosts {
    /// A forward and each half of a backward take 1.
    pub const UNIT: Self =
        Self { forward: 1.0, backward: 2.0, backward_input: 1.0, backward_weight: 1.0 };

    /// Of a step of this kind.
    pub fn of(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Forward => self.forward,
            Kind::Backward => self.backward,
            Kind::BackwardInput => self.backward_input,
            Kind::BackwardWeight => self.backward_weight,
        }
    }
}

/// What a schedule is simulated with.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    stages: Vec<StageCosts>,
    message: f64,
}

impl Costs {
    /// The costs of each stage, and the time from the end of a step until another rank has what it made.
    ///
    /// # Errors
    /// A cost that is negative or not finite.
    pub fn new(stages: Vec<StageCosts>, message: f64) -> Result<Self, SimulateError> {
        let wrong = |cost: f64| !cost.is_finite() || cost < 0.0;
        for (stage, costs) in stages.iter().enumerate() {
            if let Some(kind) = Kind::ALL.into_iter().find(|kind| wrong(costs.of(*kind))) {
                let what = format!("{kind:?} of stage {stage}");
                return Err(SimulateError::Cost { what, cost: costs.of(kind) });
            }
        }
        if wrong(message) {
            return Err(SimulateError::Cost { what: "a message".into(), cost: message });
        }
        Ok(Self { stages, message })
    }

    /// The same costs for every stage, and messages that take no time.
    pub(super) fn uniform(stages: usize, costs: StageCosts) -> Self {
        Self { stages: vec![costs; stages], message: 0.0 }
    }
}

/// A step with the time at which it ran.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The step.
    pub step: Step,
    /// When it began.
    pub start: f64,
    /// When it ended.
    pub end: f64,
}

/// A message with the time at which it was on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// The message.
    pub message: Message,
    /// The rank that sent it.
    pub from: usize,
    /// The rank that received it.
    pub to: usize,
    /// When it left.
    pub start: f64,
    /// When it was there.
    pub end: f64,
}

/// When the ranks of a pipeline did what, simulated or measured, in any unit of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TimeLine {
    /// The steps of each rank, in order, none beginning before the one before ended.
    pub ranks: Vec<Vec<Span>>,
    /// The messages between ranks, in any order; it may be empty where they were not measured.
    pub transfers: Vec<Transfer>,
}

impl TimeLine {
    /// When the first step began, and when the last ended.
    pub fn extent(&self) -> (f64, f64) {
        let spans = || self.ranks.iter().flatten();
        let start = spans().map(|span| span.start).reduce(f64::min);
        let end = spans().map(|span| span.end).reduce(f64::max);
        (start.unwrap_or(0.0), end.unwrap_or(0.0))
    }

    /// The time from the beginning of the first step to the end of the last.
    pub fn makespan(&self) -> f64 {
        let (start, end) = self.extent();
        end - start
    }

    /// The time in which `rank` computes.
    pub fn busy(&self, rank: usize) -> f64 {
        self.ranks[rank].iter().map(|span| span.end - span.start).sum()
    }

    /// The bubble of `rank`: the part of the makespan in which it computes nothing.
    pub fn idle(&self, rank: usize) -> f64 {
        self.makespan() - self.busy(rank)
    }

    /// The time between the first step and the last of `rank` in which it computes nothing. What is idle besides is
    /// before it begins and after it ended, where it could do something else.
    pub fn stalled(&self, rank: usize) -> f64 {
        let spans = &self.ranks[rank];
        match (spans.first(), spans.last()) {
            (Some(first), Some(last)) => last.end - first.start - self.busy(rank),
            _ => 0.0,
        }
    }

    /// The part of the makespan in which `rank` is idle, from 0 to 1.
    pub fn bubble(&self, rank: usize) -> f64 {
        share(self.idle(rank), self.makespan())
    }

    /// The part of the time of all ranks in which they are idle, from 0 to 1.
    pub fn mean_bubble(&self) -> f64 {
        let idle: f64 = (0..self.ranks.len()).map(|rank| self.idle(rank)).sum();
        share(idle, self.makespan() * self.ranks.len() as f64)
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Most micro-batches whose activations are alive at once: from a forward to the end of its backward, or of its
/// backward for weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peaks {
    /// Of each stage.
    pub stages: Vec<usize>,
    /// Of each rank, over all its stages: its activations count once for each.
    pub ranks: Vec<usize>,
}

/// How many activations each stage and rank keeps at most. It depends on the order of steps only, not on time.
pub fn peaks(schedule: &Schedule) -> Peaks {
    let mut alive = vec![0usize; schedule.stages()];
    let mut peaks = Peaks { stages: vec![0; schedule.stages()], ranks: vec![0; schedule.ranks()] };
    for (rank, steps) in schedule.steps().iter().enumerate() {
        let mut all = 0usize;
        for step in steps.iter().filter(|step| step.stage < schedule.stages()) {
            if step.kind == Kind::Forward {
                alive[step.stage] += 1;
                all += 1;
            } else if step.kind.frees_activations() {
                alive[step.stage] = alive[step.stage].saturating_sub(1);
                all = all.saturating_sub(1);
            }
            peaks.stages[step.stage] = peaks.stages[step.stage].max(alive[step.stage]);
            peaks.ranks[rank] = peaks.ranks[rank].max(all);
        }
    }
    peaks
}

/// Simulates `schedule`.
///
/// # Errors
/// The schedule is wrong, or `costs` are of another number of stages.
pub fn simulate(schedule: &Schedule, costs: &Costs) -> Result<TimeLine, SimulateError> {
    if costs.stages.len() != schedule.stages() {
        let (costs, stages) = (costs.stages.len(), schedule.stages());
        return Err(SimulateError::Stages { costs, stages });
    }
    check_steps(schedule)?;
    Ok(run(schedule, costs)?)
}

/// Simulates a schedule whose ranks' lists are right by themselves.
pub(super) fn run(schedule: &Schedule, costs: &Costs) -> Result<TimeLine, Fault> {
    let mut clock = Clock::new(schedule, costs);
    while clock.advance() {}
    match clock.stuck() {
        Some(fault) => Err(fault),
        None => Ok(clock.line),
    }
}

/// How far every rank is.
struct Clock<'a> {
    schedule: &'a Schedule,
    costs: &'a Costs,
    line: TimeLine,
    now: Vec<f64>,
    /// When each stage's output and its input's gradient are there, by stage and micro-batch.
    outputs: Vec<Option<f64>>,
    gradients: Vec<Option<f64>>,
}

impl<'a> Clock<'a> {
    fn new(schedule: &'a Schedule, costs: &'a Costs) -> Self {
        let ranks = schedule.ranks();
        let values = schedule.stages() * schedule.micro_batches();
        Self {
            schedule,
            costs,
            line: TimeLine { ranks: vec![Vec::new(); ranks], transfers: Vec::new() },
            now: vec![0.0; ranks],
            outputs: vec![None; values],
            gradients: vec![None; values],
        }
    }

    /// Every rank as far as it comes; whether any came further.
    fn advance(&mut self) -> bool {
        let mut moved = false;
        for rank in 0..self.schedule.ranks() {
            while let Some(step) = self.next(rank) {
                let Some(ready) = self.ready(rank, step) else { break };
                self.run(rank, step, ready);
                moved = true;
            }
        }
        moved
    }

    fn next(&self, rank: usize) -> Option<Step> {
        self.schedule.steps()[rank].get(self.line.ranks[rank].len()).copied()
    }

    /// When the input of `step` is on `rank`, if it is known by now. What a step needs of its own stage came before
    /// it on the same rank.
    fn ready(&self, rank: usize, step: Step) -> Option<f64> {
        let Some(message) = Message::needed_by(step, self.schedule.stages()) else {
            return Some(0.0);
        };
        let (from, at) =
            (message.stage, message.stage * self.schedule.micro_batches() + step.micro);
        let made = if step.kind == Kind::Forward { self.outputs[at] } else { self.gradients[at] };
        let on_its_way = if self.schedule.owner()[from] == rank { 0.0 } else { self.costs.message };
        made.map(|made| made + on_its_way)
    }

    fn run(&mut self, rank: usize, step: Step, ready: f64) {
        let start = self.now[rank].max(ready);
        let end = start + self.costs.stages[step.stage].of(step.kind);
        self.now[rank] = end;
        self.line.ranks[rank].push(Span { step, start, end });
        let at = step.stage * self.schedule.micro_batches() + step.micro;
        if step.kind == Kind::Forward {
            self.outputs[at] = Some(end);
        } else if step.kind.makes_gradient() {
            self.gradients[at] = Some(end);
        }
        let message = Message::made_by(step, self.schedule.stages());
        let needed_at = message.and_then(Message::needed_at);
        if let (Some(message), Some(stage)) = (message, needed_at) {
            let to = self.schedule.owner()[stage];
            if to != rank {
                let arrival = end + self.costs.message;
                let transfer = Transfer { message, from: rank, to, start: end, end: arrival };
                self.line.transfers.push(transfer);
            }
        }
    }

    /// Why not every rank came to its end.
    fn stuck(&self) -> Option<Fault> {
        let waits: Vec<Waiting> = (0..self.schedule.ranks())
            .filter_map(|rank| {
                let step = self.next(rank)?;
                let message = Message::needed_by(step, self.schedule.stages())?;
                Some(Waiting {
                    rank,
                    position: self.line.ranks[rank].len(),
                    operation: Operation::Compute(step),
                    peer: self.schedule.owner()[message.stage],
                })
            })
            .collect();
        Fault::stuck(waits)
    }
}

/// Why there is no time line.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SimulateError {
    /// The schedule is wrong.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Costs of another number of stages.
    #[error("costs of {costs} stages for a schedule of {stages}: give one for each stage")]
    Stages {
        /// Stages that there are costs of.
        costs: usize,
        /// Stages of the schedule.
        stages: usize,
    },
    /// A cost that cannot be.
    #[error("{what} takes {cost}: a time is finite and not negative")]
    Cost {
        /// What takes it.
        what: String,
        /// The cost.
        cost: f64,
    },
}
