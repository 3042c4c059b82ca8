//! When the ranks of a pipeline really ran their steps.

use super::Pipeline;
use crate::pipeline::{
    Costs, Kind, Operation, SimulateError, Span, StageCosts, Step, TimeLine, Transfer, simulate,
};
use crate::program::{Action, Program};

/// The time line of a pipeline: of each rank its program, and when each of its actions began and ended, in any unit of
/// time; clocks begin at the same moment. A rank that has fewer times than actions has no steps.
///
/// A step lasts from the beginning of its first unit to the end of its last; where a unit's parameters are gathered in
/// between, that is a part of it. A message is on its way from the end of its sending to the end of its receiving.
pub fn time_line(pipeline: &Pipeline, ranks: &[(Program, Vec<[f64; 2]>)]) -> TimeLine {
    let whole = ranks.iter().map(|(program, times)| Rank {
        pipeline,
        actions: if times.len() < program.actions.len() { &[] } else { &program.actions },
        times,
    });
    let whole: Vec<Rank> = whole.collect();
    let schedule = &pipeline.schedule;
    let spans = whole.iter().zip(schedule.steps()).map(|(rank, steps)| rank.spans(steps));
    let mut transfers = Vec::new();
    for (from, operations) in pipeline.lowered.operations.iter().enumerate() {
        for operation in operations {
            let Operation::Send { message, to } = *operation else { continue };
            let sent = whole[from].end_of(pipeline.sending(message));
            let received = whole[to].end_of(pipeline.receiving(message));
            if let (Some(start), Some(end)) = (sent, received) {
                transfers.push(Transfer { message, from, to, start, end });
            }
        }
    }
    TimeLine { ranks: spans.collect(), transfers }
}

/// What a schedule makes of steps that take as long as they took on average, if messages took no time.
///
/// # Errors
/// The schedule is wrong.
pub fn ideal(pipeline: &Pipeline, measured: &TimeLine) -> Result<TimeLine, SimulateError> {
    let mean = |stage: usize, kind: Kind| {
        let spans = measured.ranks.iter().flatten();
        let like = spans.filter(|span| span.step.stage == stage && span.step.kind == kind);
        let (count, time) =
            like.fold((0, 0.0), |(count, time), span| (count + 1, time + (span.end - span.start)));
        if count == 0 { 0.0 } else { time / f64::from(count) }
    };
    let costs = (0..pipeline.stages.len()).map(|stage| StageCosts {
        forward: mean(stage, Kind::Forward),
        backward: mean(stage, Kind::Backward),
        backward_input: mean(stage, Kind::BackwardInput),
        backward_weight: mean(stage, Kind::BackwardWeight),
    });
    simulate(&pipeline.schedule, &Costs::new(costs.collect(), 0.0)?)
}

/// What one rank did.
struct Rank<'a> {
    pipeline: &'a Pipeline,
    actions: &'a [Action],
    times: &'a [[f64; 2]],
}

impl Rank<'_> {
    fn spans(&self, steps: &[Step]) -> Vec<Span> {
        let mut next = 0;
        let span = |step: &Step| {
            let from = |at: usize, is: &dyn Fn(Action) -> bool| {
                Some(at + self.actions.get(at..)?.iter().position(|action| is(*action))?)
            };
            let first = from(next, &|action| self.is_part(action, *step))?;
            let last = from(first, &|action| self.is_end(action, *step))?;
            next = last + 1;
            Some(Span { step: *step, start: self.times[first][0], end: self.times[last][1] })
        };
        steps.iter().map_while(span).collect()
    }

    /// Whether an action computes for a step.
    fn is_part(&self, action: Action, step: Step) -> bool {
        let computes = matches!(
            action,
            Action::Forward { .. }
                | Action::Backward { .. }
                | Action::BackwardInput { .. }
                | Action::BackwardWeight { .. }
        );
        let stage = &self.pipeline.stages[step.stage];
        let here = action.unit().is_some_and(|unit| stage.contains(&unit));
        computes && here && action.micro() == Some(step.micro)
    }

    /// Whether an action is the last that computes for a step.
    fn is_end(&self, action: Action, step: Step) -> bool {
        let stage = &self.pipeline.stages[step.stage];
        let (first, last, micro) = (stage.start, stage.end - 1, step.micro);
        match (step.kind, action) {
            (Kind::Forward, Action::Forward { unit, .. }) => {
                unit == last && action.micro() == Some(micro)
            }
            (Kind::Backward, action) => action == Action::Backward { unit: first, micro },
            (Kind::BackwardInput, action) => action == Action::BackwardInput { unit: first, micro },
            (Kind::BackwardWeight, action) => {
                action == Action::BackwardWeight { unit: first, micro }
            }
            (Kind::Forward, _) => false,
        }
    }

    fn end_of(&self, action: Action) -> Option<f64> {
        let place = self.actions.iter().position(|other| *other == action)?;
        Some(self.times[place][1])
    }
}
