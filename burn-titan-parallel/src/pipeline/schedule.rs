//! Lists of steps, and the names of the schedules that are built in.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The output of a stage from the output of the stage before.
    Forward,
    /// The gradients of a stage's input and of its weights from the gradient of its output.
    Backward,
    /// The gradient of a stage's input only. The stage before waits for it, and for nothing else.
    BackwardInput,
    /// The gradients of a stage's weights only, any time after [`Kind::BackwardInput`].
    BackwardWeight,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] =
        [Self::Forward, Self::Backward, Self::BackwardInput, Self::BackwardWeight];

    /// Its letter, as in PyTorch: `F`, `B`, `I` or `W`.
    pub fn letter(self) -> char {
        match self {
            Self::Forward => 'F',
            Self::Backward => 'B',
            Self::BackwardInput => 'I',
            Self::BackwardWeight => 'W',
        }
    }

    /// Whether it makes the gradient of the stage's input.
    pub fn makes_gradient(self) -> bool {
        matches!(self, Self::Backward | Self::BackwardInput)
    }

    /// Whether nothing that the forward kept is needed after it.
    pub fn frees_activations(self) -> bool {
        matches!(self, Self::Backward | Self::BackwardWeight)
    }
}

/// One computation of one rank. Prints as in PyTorch: `1F0` is the forward of stage 1 on micro-batch 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step {
    /// What is computed.
    pub kind: Kind,
    /// The stage, counted from 0 through the model.
    pub stage: usize,
    /// The micro-batch, from 0.
    pub micro: usize,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.stage, self.kind.letter(), self.micro)
    }
}

/// What every rank computes in one training step, in order.
///
/// It may still be wrong, for instance if it was read from a file: [`Schedule::lower`] proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    micro_batches: usize,
    owner: Vec<usize>,
    steps: Vec<Vec<Step>>,
}

impl Schedule {
    /// A schedule of which `owner` gives the rank of each stage and `steps` the list of each rank.
    ///
    /// # Errors
    /// No stages, no micro-batches, or an owner without a list.
    pub fn new(
        owner: Vec<usize>,
        micro_batches: usize,
        steps: Vec<Vec<Step>>,
    ) -> Result<Self, ScheduleError> {
        for (what, count) in [("stages", owner.len()), ("micro-batches", micro_batches)] {
            if count == 0 {
                return Err(ScheduleError::Nothing { what });
            }
        }
        let ranks = steps.len();
        match owner.iter().position(|rank| *rank >= ranks) {
            Some(stage) => Err(ScheduleError::NoSuchOwner { stage, owner: owner[stage], ranks }),
            None => Ok(Self { micro_batches, owner, steps }),
        }
    }

    /// Ranks of the pipeline.
    pub fn ranks(&self) -> usize {
        self.steps.len()
    }

    /// Stages of the model.
    pub fn stages(&self) -> usize {
        self.owner.len()
    }

    /// Micro-batches of a training step.
    pub fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    /// The rank of each stage.
    pub fn owner(&self) -> &[usize] {
        &self.owner
    }

    /// The steps of each rank, in order.
    pub fn steps(&self) -> &[Vec<Step>] {
        &self.steps
    }

    /// The stages of `rank`, in the order of the model.
    pub fn stages_of(&self, rank: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.stages()).filter(move |stage| self.owner[*stage] == rank)
    }

    /// The same with whole backwards of the stages that `whole` names, for those whose backward cannot be split. Each
    /// stands where its part for the input stood.
    pub fn with_whole_backwards(mut self, whole: impl Fn(usize) -> bool) -> Self {
        for steps in &mut self.steps {
            steps.retain(|step| step.kind != Kind::BackwardWeight || !whole(step.stage));
            for step in steps.iter_mut().filter(|step| whole(step.stage)) {
                if step.kind == Kind::BackwardInput {
                    step.kind = Kind::Backward;
                }
            }
        }
        self
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rank, steps) in self.steps.iter().enumerate() {
            write!(f, "rank {rank}:")?;
            steps.iter().try_for_each(|step| write!(f, " {step}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What a schedule is a function of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Ranks of the pipeline.
    pub ranks: usize,
    /// Stages that each rank owns.
    pub stages_per_rank: usize,
    /// Micro-batches of a training step.
    pub micro_batches: usize,
}

impl Shape {
    /// Most forwards of a training step over all ranks, so that a slip in a config does not fill the memory.
    pub const MOST_FORWARDS: usize = 1 << 24;

    /// # Errors
    /// A count of zero, more than [`Shape::MOST_FORWARDS`], or stages that `family` does not take.
    pub(super) fn check(self, family: Family) -> Result<(), ScheduleError> {
        let Self { ranks, stages_per_rank, micro_batches } = self;
        let counts = [
            ("ranks", ranks),
            ("stages per rank", stages_per_rank),
            ("micro-batches", micro_batches),
        ];
        if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ScheduleError::Nothing { what });
        }
        let forwards =
            ranks.checked_mul(stages_per_rank).and_then(|stages| stages.checked_mul(micro_batches));
        if forwards.is_none_or(|forwards| forwards > Self::MOST_FORWARDS) {
            return Err(ScheduleError::TooLarge { ranks, stages_per_rank, micro_batches });
        }
        match family.stages_per_rank() {
            Some((needed, instead)) if needed != stages_per_rank => {
                Err(ScheduleError::StagesPerRank {
                    family,
                    ranks,
                    needed,
                    stages_per_rank,
                    instead,
                })
            }
            _ => Ok(()),
        }
    }

    /// Stages of the model.
    pub fn stages(self) -> usize {
        self.ranks * self.stages_per_rank
    }

    /// The rank of each stage where the model goes round the ranks, once for each stage that a rank owns.
    pub fn loops(self) -> Vec<usize> {
        (0..self.stages()).map(|stage| stage % self.ranks).collect()
    }

    /// The rank of each stage where the model goes down the ranks and back up: rank 0 has the first stage and the
    /// last. Only for 2 stages a rank.
    pub fn descends_and_returns(self) -> Vec<usize> {
        (0..self.ranks).chain((0..self.ranks).rev()).collect()
    }
}

/// The schedules that are built in, by their names in the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// All forwards, then all backwards: [`gpipe`](super::gpipe()).
    GPipe,
    /// One forward, one backward: [`one_f_one_b`](super::one_f_one_b()).
    OneForwardOneBackward,
    /// The same with several stages a rank: [`interleaved`](super::interleaved()).
    Interleaved,
    /// Stage by stage: [`looped_bfs`](super::looped_bfs()).
    LoopedBreadthFirst,
    /// Backwards for weights fill the bubble: [`zero_bubble`](super::zero_bubble()).
    ZeroBubble,
    /// The same with two stages a rank, as a V: [`zbv`](super::zbv()).
    ZeroBubbleV,
    /// Forwards beside backwards, two stages a rank, as a V: [`dual_pipe_v`](super::dual_pipe_v()).
    DualPipeV,
}

impl Family {
    /// Every schedule that is built in.
    pub const ALL: [Self; 7] = [
        Self::GPipe,
        Self::OneForwardOneBackward,
        Self::Interleaved,
        Self::LoopedBreadthFirst,
        Self::ZeroBubble,
        Self::ZeroBubbleV,
        Self::DualPipeV,
    ];

    /// Its name in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::GPipe => "gpipe",
            Self::OneForwardOneBackward => "1f1b",
            Self::Interleaved => "interleaved_1f1b",
            Self::LoopedBreadthFirst => "looped_bfs",
            Self::ZeroBubble => "zb1p",
            Self::ZeroBubbleV => "zbv",
            Self::DualPipeV => "dualpipev",
        }
    }

    /// The number of stages that each rank must own and what to choose for another, where it is not free.
    pub fn stages_per_rank(self) -> Option<(usize, &'static str)> {
        match self {
            Self::GPipe => Some((1, "looped_bfs")),
            Self::OneForwardOneBackward => Some((1, "interleaved_1f1b")),
            Self::ZeroBubbleV | Self::DualPipeV => Some((2, "zb1p")),
            Self::Interleaved | Self::LoopedBreadthFirst | Self::ZeroBubble => None,
        }
    }

    /// Its schedule.
    ///
    /// # Errors
    /// Counts of zero, far too many, or stages that it does not take.
    pub fn schedule(self, shape: Shape) -> Result<Schedule, ScheduleError> {
        match self {
            Self::GPipe => super::gpipe(shape),
            Self::OneForwardOneBackward => super::one_f_one_b(shape),
            Self::Interleaved => super::interleaved(shape),
            Self::LoopedBreadthFirst => super::looped_bfs(shape),
            Self::ZeroBubble => super::zero_bubble(shape),
            Self::ZeroBubbleV => super::zbv(shape),
            Self::DualPipeV => super::dual_pipe_v(shape),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, ScheduleError> {
        Self::ALL
            .into_iter()
            .find(|family| family.name() == name)
            .ok_or_else(|| ScheduleError::UnknownName { name: name.to_owned() })
    }
}

/// Why there is no such schedule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScheduleError {
    /// No schedule has this name.
    #[error("no schedule is named {name:?}; there are {}", Family::ALL.map(Family::name).join(", "))]
    UnknownName {
        /// The name.
        name: String,
    },
    /// A count is zero.
    #[error("a pipeline of 0 {what}: give at least 1")]
    Nothing {
        /// What there is none of.
        what: &'static str,
    },
    /// The lists would fill the memory.
    #[error(
        "{ranks} ranks x {stages_per_rank} stages x {micro_batches} micro-batches are more than {} forwards: \
         choose fewer",
        Shape::MOST_FORWARDS
    )]
    TooLarge {
        /// Ranks of the pipeline.
        ranks: usize,
        /// Stages that each rank owns.
        stages_per_rank: usize,
        /// Micro-batches of a training step.
        micro_batches: usize,
    },
    /// The schedule takes another number of stages.
    #[error(
        "{family} takes {needed} stages per rank, {ranks} ranks x {needed} = {} stages, and got {stages_per_rank} \
         per rank: change the number of stages, or choose {instead}",
        ranks * needed
    )]
    StagesPerRank {
        /// The schedule.
        family: Family,
        /// Ranks of the pipeline.
        ranks: usize,
        /// Stages per rank that it takes.
        needed: usize,
        /// Stages per rank that were asked for.
        stages_per_rank: usize,
        /// A schedule that takes any number of stages.
        instead: &'static str,
    },
    /// A stage belongs to a rank that is not there.
    #[error("stage {stage} belongs to rank {owner}, and there are {ranks} ranks")]
    NoSuchOwner {
        /// The stage.
        stage: usize,
        /// Its rank.
        owner: usize,
        /// Ranks of the pipeline.
        ranks: usize,
    },
}
