//! The sizes of what a program handles.

use super::group::{Operation, Scope};
use crate::host::Element;

/// The sizes of the tensors of a rank's program.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Each unit of the model.
    pub units: Vec<UnitSizes>,
    /// Ranks that share the parameters.
    pub shards: usize,
    /// Ranks that have all experts together, and ranks that share the parameters of the same experts.
    pub expert: usize,
    /// Ranks that share the parameters of the same experts.
    pub expert_shards: usize,
    /// Experts of all layers, whose loads are summed.
    pub expert_loads: usize,
    /// Copies of the sharded model.
    pub replicas: usize,
    /// Ranks that split matrix products.
    pub tensor: usize,
    /// Those of them that have the same key heads as the first.
    pub holders: usize,
    /// Ranks that share each sequence.
    pub context: usize,
    /// Stages of the pipeline.
    pub pipeline: usize,
    /// All ranks.
    pub world: usize,
    /// In which activations, and the weights they meet, are held.
    pub compute: Element,
    /// In which gradients are summed over ranks.
    pub reduce: Element,
    /// What travels as int8 between the ranks that share the parameters.
    pub quantized: Quantized,
    /// Whether the device that computes has memory of its own, away from the host's, where messages are.
    pub separate: bool,
    /// Whether parameters, their gradients and the optimizer's state rest in the host's memory, where that is another.
    pub offload: bool,
    /// Bytes of the optimizer's state on this rank.
    pub optimizer_state: u64,
    /// Elements of the matrices that the optimizer gathers to their owners, on all ranks together.
    pub gathered_by_optimizer: usize,
    /// Most bytes that the optimizer holds while it updates, beside its state and the gradients.
    pub optimizer_working: u64,
    /// Bytes of a micro-batch's tokens and targets, and what goes with them.
    pub micro_batch: u64,
}

/// What travels as int8 blocks ([`crate::communicator::all_gather_quantized`] and its like).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantized {
    /// Whether parameters do.
    pub parameters: bool,
    /// Whether gradients do.
    pub gradients: bool,
    /// Elements that share a scale; a multiple of 4.
    pub block: usize,
}

impl Quantized {
    /// Words of four numbers in so many blocks.
    pub(super) fn words(&self, blocks: usize) -> usize {
        blocks * self.block / 4
    }

    /// Bytes of so many blocks: a number for each element, and a scale.
    pub(super) fn bytes(&self, blocks: usize) -> u64 {
        (blocks * (self.block + 4)) as u64
    }
}

impl Sizes {
    /// Ranks that take part in an operation.
    pub fn ranks(&self, scope: Scope) -> usize {
        match scope {
            Scope::Shard => self.shards,
            Scope::Expert => self.expert,
            Scope::ExpertShard => self.expert_shards,
            Scope::Replicate => self.replicas,
            Scope::Tensor => self.tensor,
            Scope::Holders => self.holders,
            Scope::Context => self.context,
            Scope::Message | Scope::Tied => self.pipeline.min(2),
            Scope::Norm => self.world / self.replicas,
            Scope::World => self.world,
        }
    }

    /// Blocks of the largest shard of so many elements of a unit's parameters, if they are gathered as such. Where a
    /// rank has none of the elements, they are not.
    pub(super) fn gathered_blocks(&self, scope: Scope, elements: usize) -> Option<usize> {
        self.quantized.parameters.then(|| self.blocks(scope, elements)).flatten()
    }

    /// The same of the gradients that are reduced.
    pub(super) fn reduced_blocks(&self, scope: Scope, elements: usize) -> Option<usize> {
        self.quantized.gradients.then(|| self.blocks(scope, elements)).flatten()
    }

    /// The dtype of the sum of a unit's gradients over the ranks that share them.
    pub(super) fn sum(&self, scope: Scope, elements: usize) -> Element {
        if self.reduced_blocks(scope, elements).is_some() { Element::F32 } else { self.reduce }
    }

    fn blocks(&self, scope: Scope, elements: usize) -> Option<usize> {
        let ranks = self.ranks(scope);
        let shared = ranks > 1 && elements >= ranks;
        shared.then(|| elements.div_ceil(ranks).div_ceil(self.quantized.block))
    }
}

/// Parameters of a unit that the same ranks share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The ranks.
    pub(super) scope: Scope,
    /// Elements of all of them.
    pub(super) elements: usize,
    /// Those of them that this rank holds.
    pub(super) shard: usize,
}

impl Part {
    /// A parameter that belongs to an earlier unit.
    pub(super) fn tied(elements: usize, shard: usize) -> Self {
        Self { scope: Scope::Shard, elements, shard }
    }
}

/// The sizes of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitSizes {
    /// Elements of the parameters that belong to it, without experts that are dealt out.
    pub owned: usize,
    /// Those of them that this rank holds.
    pub shard: usize,
    /// Elements of the parameters of this rank's experts, where they are dealt out.
    pub experts: usize,
    /// Those of them that this rank holds.
    pub expert_shard: usize,
    /// Its parameters that belong to an earlier unit.
    pub tied: Vec<Tied>,
    /// Elements of those of its own parameters of which several ranks have the same part, and each a summand of the
    /// gradient: by these ranks.
    pub partial: Vec<(Scope, usize)>,
    /// Elements of its output on a micro-batch.
    pub output: usize,
    /// Elements of its parameters that a unit on another stage has too.
    pub tied_apart: usize,
    /// What its modules exchange while they compute.
    pub exchanges: Exchanges,
    /// What a micro-batch takes.
    pub activations: Activations,
}

/// What a unit's modules exchange on a micro-batch, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchanges {
    /// In each forward.
    pub forward: Vec<Operation>,
    /// In the backward.
    pub backward: Vec<Operation>,
}

/// A parameter that a unit shares with an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tied {
    /// The unit that it belongs to.
    pub owner: usize,
    /// Its elements.
    pub elements: usize,
    /// Those of them that this rank holds.
    pub shard: usize,
}

impl UnitSizes {
    /// Its own parameters by the ranks that share them.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let dense = Part { scope: Scope::Shard, elements: self.owned, shard: self.shard };
        let experts =
            Part { scope: Scope::ExpertShard, elements: self.experts, shard: self.expert_shard };
        [dense, experts].into_iter().filter(|part| part.elements > 0)
    }

    /// Elements of all its parameters.
    pub fn elements(&self) -> usize {
        self.owned + self.experts + self.tied.iter().map(|tied| tied.elements).sum::<usize>()
    }
}

/// Bytes that a unit takes on a micro-batch, beside its parameters and its input. What is held only while it runs
/// is given as what comes on top of what is there before, or remains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activations {
    /// The output, which is the next unit's input.
    pub output: u64,
    /// What the graph of a forward keeps for the backward, without input and output.
    pub graph: u64,
    /// Most while a forward runs whose graph is kept: on top of graph and output.
    pub forward: u64,
    /// Most while a forward runs whose graph is not kept: on top of the output.
    pub plain_forward: u64,
    /// Most while the backward runs, the parameters' gradients in the compute dtype and the input's gradient among
    /// it: on top of what is there when it begins (graph, input, output and the output's gradient).
    pub backward: u64,
    /// What remains of graph and gradients where the gradients of weights are put off, until they are computed; 0 if the
    /// backward cannot be split, and runs whole with its first half.
    pub put_off: u64,
    /// What units of the micro-batch share: made by the first of them, and there until the step's end.
    pub shared: u64,
}
