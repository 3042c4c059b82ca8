//! The actions of a training step.

use std::fmt;

/// What a forward keeps for the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Keep {
    /// The autodiff graph with all activations: the backward can run.
    Graph,
    /// Only the unit's input: the forward must run again before the backward.
    Input,
    /// Nothing: no backward follows.
    Nothing,
}

/// One action of one rank. Units and micro-batches count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Begins to gather the unit's full parameters, in the compute dtype, from the ranks that share them.
    Gather {
        /// The unit.
        unit: usize,
    },
    /// Waits for what [`Action::Gather`] began and makes the unit out of it.
    Unshard {
        /// The unit.
        unit: usize,
    },
    /// Runs the unit on a micro-batch. The first time its input is the output of the unit before;
    /// again after `Keep::Input`, it is the input that was kept.
    Forward {
        /// The unit.
        unit: usize,
        /// The micro-batch.
        micro: usize,
        /// What is kept.
        keep: Keep,
    },
    /// As [`Action::Backward`], but for what the gradients of the weights can wait with: only what the unit before
    /// needs. Where a module cannot tell them apart, everything is done here.
    BackwardInput {
        /// The unit.
        unit: usize,
        /// The micro-batch.
        micro: usize,
    },
    /// The rest of [`Action::BackwardInput`].
    BackwardWeight {
        /// The unit.
        unit: usize,
        /// The micro-batch.
        micro: usize,
    },
    /// Begins to send the unit's output to the rank that has the unit after it.
    SendActivation {
        /// The unit.
        unit: usize,
        /// The micro-batch.
        micro: usize,
    },
    /// Waits for the output of a unit from the rank that has it.
    ReceiveActivation {
        /// The unit, which another rank has.
        unit: usize,
        /// The micro-batch.
        micro: usize,
    },
    /// Begins to send the gradient of a unit's output, which the unit after it has computed, to the rank that has it.
    SendGradient {
        /// The unit, which another rank has.
        unit: usize,
        /// The micro-batch.
        micro: usize,
    },
    /// Waits for the gradient of the unit's output from the rank that has the unit after it.
    ReceiveGradient {
        /// The unit.
        unit: usize,
        /// The micro-batch.
        micro: usize,
    },
    /// Sums the gradients of those of the unit's parameters that a unit on another stage has too, over the two.
    SumTiedGradients {
        /// The unit.
        unit: usize,
    },
    /// Frees the unit's full parameters.
    Reshard {
        /// The unit.
        unit: usize,
    },
    /// Runs the unit's backward on a micro-batch from the gradient of the unit after, adds up the
    /// parameters' gradients in f32 and frees what the forward kept.
    Backward {
        /// The unit.
        unit: usize,
        /// The micro-batch.
        micro: usize,
    },
    /// Sums the gradients of those of the unit's parameters of which several ranks of `tp` have the same part, and
    /// each a summand of its gradient, over these ranks.
    SumPartialGradients {
        /// The unit.
        unit: usize,
    },
    /// Begins to sum the unit's gradients over the ranks that share its parameters, each to get its shard,
    /// and frees them.
    ReduceGradients {
        /// The unit.
        unit: usize,
    },
    /// Waits for what [`Action::ReduceGradients`] began and begins to sum it over the copies of the model.
    AllReduceGradients {
        /// The unit.
        unit: usize,
    },
    /// Waits for the sum of the unit's gradients and adds it to those of the shard.
    AwaitGradients {
        /// The unit.
        unit: usize,
    },
    /// Sums, over all ranks, how many tokens each expert has met.
    SumExpertLoads,
    /// Computes the global norm of all gradients and the factor that clips it.
    ClipGradientNorm,
    /// Updates every shard and frees its gradient.
    OptimizerStep,
}

impl Action {
    /// The unit that it is about.
    pub fn unit(&self) -> Option<usize> {
        match *self {
            Self::Gather { unit }
            | Self::Unshard { unit }
            | Self::Forward { unit, .. }
            | Self::Reshard { unit }
            | Self::Backward { unit, .. }
            | Self::BackwardInput { unit, .. }
            | Self::BackwardWeight { unit, .. }
            | Self::SendActivation { unit, .. }
            | Self::ReceiveActivation { unit, .. }
            | Self::SendGradient { unit, .. }
            | Self::ReceiveGradient { unit, .. }
            | Self::SumTiedGradients { unit }
            | Self::SumPartialGradients { unit }
            | Self::ReduceGradients { unit }
            | Self::AllReduceGradients { unit }
            | Self::AwaitGradients { unit } => Some(unit),
            Self::SumExpertLoads | Self::ClipGradientNorm | Self::OptimizerStep => None,
        }
    }
}

impl Action {
    /// The micro-batch that it is about.
    pub fn micro(&self) -> Option<usize> {
        match *self {
            Self::Forward { micro, .. }
            | Self::Backward { micro, .. }
            | Self::BackwardInput { micro, .. }
            | Self::BackwardWeight { micro, .. }
            | Self::SendActivation { micro, .. }
            | Self::ReceiveActivation { micro, .. }
            | Self::SendGradient { micro, .. }
            | Self::ReceiveGradient { micro, .. } => Some(micro),
            _ => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gather { unit } => write!(f, "Gather({unit})"),
            Self::Unshard { unit } => write!(f, "Unshard({unit})"),
            Self::Forward { unit, micro, keep } => write!(f, "Forward({unit}, {micro}, {keep:?})"),
            Self::Reshard { unit } => write!(f, "Reshard({unit})"),
            Self::Backward { unit, micro } => write!(f, "Backward({unit}, {micro})"),
            Self::BackwardInput { unit, micro } => write!(f, "BackwardInput({unit}, {micro})"),
            Self::BackwardWeight { unit, micro } => write!(f, "BackwardWeight({unit}, {micro})"),
            Self::SendActivation { unit, micro } => write!(f, "SendActivation({unit}, {micro})"),
            Self::ReceiveActivation { unit, micro } => {
                write!(f, "ReceiveActivation({unit}, {micro})")
            }
            Self::SendGradient { unit, micro } => write!(f, "SendGradient({unit}, {micro})"),
            Self::ReceiveGradient { unit, micro } => write!(f, "ReceiveGradient({unit}, {micro})"),
            Self::SumTiedGradients { unit } => write!(f, "SumTiedGradients({unit})"),
            Self::SumPartialGradients { unit } => write!(f, "SumPartialGradients({unit})"),
            Self::ReduceGradients { unit } => write!(f, "ReduceGradients({unit})"),
            Self::AllReduceGradients { unit } => write!(f, "AllReduceGradients({unit})"),
            Self::AwaitGradients { unit } => write!(f, "AwaitGradients({unit})"),
            Self::SumExpertLoads => write!(f, "SumExpertLoads"),
            Self::ClipGradientNorm => write!(f, "ClipGradientNorm"),
            Self::OptimizerStep => write!(f, "OptimizerStep"),
        }
    }
}

/// The actions of one rank in one step, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Units of the model.
    pub units: usize,
    /// Which of them the rank has.
    pub owned: Vec<bool>,
    /// Micro-batches of the step.
    pub micro_batches: usize,
    /// What is done, in order.
    pub actions: Vec<Action>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actions.iter().try_for_each(|action| writeln!(f, "{action}"))
    }
}
