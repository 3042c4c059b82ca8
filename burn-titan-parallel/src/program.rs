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
            | Self::SumPartialGradients { unit }
            | Self::ReduceGradients { unit }
            | Self::AllReduceGradients { unit }
            | Self::AwaitGradients { unit } => Some(unit),
            Self::ClipGradientNorm | Self::OptimizerStep => None,
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
            Self::SumPartialGradients { unit } => write!(f, "SumPartialGradients({unit})"),
            Self::ReduceGradients { unit } => write!(f, "ReduceGradients({unit})"),
            Self::AllReduceGradients { unit } => write!(f, "AllReduceGradients({unit})"),
            Self::AwaitGradients { unit } => write!(f, "AwaitGradients({unit})"),
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
