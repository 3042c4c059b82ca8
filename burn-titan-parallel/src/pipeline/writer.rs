//! Writing the list of one rank.

use std::collections::{HashMap, VecDeque};

use super::schedule::{Kind, Step};

/// Writes the steps of one rank. Each stage takes its micro-batches in order, so a writer names only stages.
///
/// What it is told to do with micro-batches beyond the last is left out. A schedule made for more micro-batches
/// stays one without those: the steps that are left keep their order, and none of them needed what is gone.
pub(super) struct RankWriter {
    micro_batches: usize,
    forwards: HashMap<usize, usize>,
    backwards: HashMap<usize, usize>,
    /// Weights whose backward is still to be done, oldest first.
    pending: VecDeque<Step>,
    steps: Vec<Step>,
}

impl RankWriter {
    pub fn new(micro_batches: usize) -> Self {
        Self {
            micro_batches,
            forwards: HashMap::new(),
            backwards: HashMap::new(),
            pending: VecDeque::new(),
            steps: Vec::new(),
        }
    }

    /// The forward of the stage's next micro-batch.
    pub fn forward(&mut self, stage: usize) {
        let micro = next(&mut self.forwards, stage);
        self.push(Step { kind: Kind::Forward, stage, micro });
    }

    /// The whole backward of the stage's next micro-batch.
    pub fn backward(&mut self, stage: usize) {
        let micro = next(&mut self.backwards, stage);
        self.push(Step { kind: Kind::Backward, stage, micro });
    }

    /// The backward for the input of the stage's next micro-batch; that for its weights is pending from now on.
    pub fn backward_input(&mut self, stage: usize) {
        let micro = next(&mut self.backwards, stage);
        self.push(Step { kind: Kind::BackwardInput, stage, micro });
        self.pending.push_back(Step { kind: Kind::BackwardWeight, stage, micro });
    }

    /// The oldest pending backward for weights, if there is one.
    pub fn backward_weight(&mut self) {
        if let Some(step) = self.pending.pop_front() {
            self.push(step);
        }
    }

    /// The oldest pending backward for the weights of `stage`, if there is one.
    pub fn backward_weight_of(&mut self, stage: usize) {
        let oldest = self.pending.iter().position(|step| step.stage == stage);
        if let Some(step) = oldest.and_then(|oldest| self.pending.remove(oldest)) {
            self.push(step);
        }
    }

    /// Backwards for weights that are pending.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The list, with what is pending at its end.
    pub fn finish(mut self) -> Vec<Step> {
        while self.pending() > 0 {
            self.backward_weight();
        }
        self.steps
    }

    fn push(&mut self, step: Step) {
        if step.micro < self.micro_batches {
            self.steps.push(step);
        }
    }
}

/// The next micro-batch of `stage`.
fn next(counts: &mut HashMap<usize, usize>, stage: usize) -> usize {
    let count = counts.entry(stage).or_default();
    *count += 1;
    *count - 1
}
