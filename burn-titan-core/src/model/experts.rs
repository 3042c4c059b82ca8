//! A model's experts, and how they lie on the ranks of the axis `ep`.

use burn_titan_parallel::{Axis, Mesh};

use super::tensor_plan::{Cut, PlanError, TensorRank};
use super::unit::ParameterSpec;

/// What a parameter is for, as far as it decides where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterRole {
    /// Every token meets it.
    Dense,
    /// Its first dim counts experts, each of which meets the tokens that were sent to it.
    Expert,
    /// What balances the choice of experts: a number for each, which has no gradient, but is moved by the load of the
    /// experts. It is whole on every rank, in f32.
    RouterBias,
}

/// The experts of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of each layer that has some.
    pub each: usize,
    /// Those that each token meets.
    pub met: usize,
    /// Layers that have some.
    pub layers: usize,
    /// Names of the parameters that balance the choice, one for each of these layers; none where nothing does.
    pub biases: Vec<String>,
    /// How far a step moves such a number (DeepSeek-AI, 2024: the bias update speed).
    pub bias_rate: f64,
    /// What is added to the loss.
    pub losses: AuxiliaryLosses,
}

/// Factors of losses that are added to that of the model, each summed over layers; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AuxiliaryLosses {
    /// Of the balance of each sequence, as a mean over sequences
    /// ([`sequence_balance_loss`](burn_titan_kernels::sequence_balance_loss)).
    pub sequence_balance: f64,
    /// Of the size of the router's logits, as a mean over tokens
    /// ([`router_z_loss`](burn_titan_kernels::router_z_loss)).
    pub router_z: f64,
}

impl AuxiliaryLosses {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A rank among those that deal out the experts. They borrow the ranks of `dp_shard`, `cp` and `tp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertRank {
    /// This rank, from 0, among those that have all experts together.
    pub rank: usize,
    /// How many these are.
    pub ranks: usize,
    /// This rank among those that share the parameters of its experts.
    pub shard: usize,
    /// How many these are.
    pub shards: usize,
}

impl ExpertRank {
    /// Experts are not dealt out: they lie as other parameters do.
    pub const ALONE: Self = Self { rank: 0, ranks: 1, shard: 0, shards: 1 };

    /// A rank of a mesh.
    pub fn of(mesh: &Mesh, rank: usize) -> Self {
        let place = |axis| (mesh.coordinate(rank, axis), mesh.degree(axis));
        match (place(Axis::Expert), place(Axis::ExpertShard)) {
            ((_, 1), _) => Self::ALONE,
            ((rank, ranks), (shard, shards)) => Self { rank, ranks, shard, shards },
        }
    }

    /// Whether experts are dealt out.
    pub fn deals(&self) -> bool {
        self.ranks > 1
    }

    /// This rank's experts of a parameter.
    ///
    /// # Errors
    /// If they do not divide.
    pub(super) fn cut(&self, spec: &ParameterSpec, tensor: TensorRank) -> Result<Cut, PlanError> {
        let Self { rank, ranks, .. } = *self;
        let experts = spec.shape.first().copied().unwrap_or(0);
        if experts == 0 || !experts.is_multiple_of(ranks) {
            return Err(PlanError::Experts { name: spec.name.clone(), experts, ranks });
        }
        let mut cut = Cut::whole(&spec.shape);
        (cut.start[0], cut.shape[0]) = (rank * (experts / ranks), experts / ranks);
        cut.holders = tensor.rank..tensor.rank + 1;
        Ok(cut)
    }
}
