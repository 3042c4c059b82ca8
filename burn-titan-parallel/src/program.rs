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
    /// Makes the unit's full parameters, in the compute dtype, out of the shards.
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
    /// Sums the unit's gradients over the data-parallel ranks, each keeping its shard.
    ReduceGradients {
        /// The unit.
        unit: usize,
    },
    /// Computes the global norm of all gradients and the factor that clips it.
    ClipGradientNorm,
    /// Updates every shard and frees its gradient.
    OptimizerStep,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unshard { unit } => write!(f, "Unshard({unit})"),
            Self::Forward { unit, micro, keep } => write!(f, "Forward({unit}, {micro}, {keep:?})"),
            Self::Reshard { unit } => write!(f, "Reshard({unit})"),
            Self::Backward { unit, micro } => write!(f, "Backward({unit}, {micro})"),
            Self::ReduceGradients { unit } => write!(f, "ReduceGradients({unit})"),
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
