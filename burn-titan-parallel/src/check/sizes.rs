//! The sizes of what a program handles.

use crate::host::Element;

/// The sizes of the tensors of a rank's program.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Each unit of the model.
    pub units: Vec<UnitSizes>,
    /// Ranks that share the parameters.
    pub shards: usize,
    /// Copies of the sharded model.
    pub replicas: usize,
    /// In which activations, and the weights they meet, are held.
    pub compute: Element,
    /// In which gradients are summed over ranks.
    pub reduce: Element,
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

/// The sizes of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitSizes {
    /// Elements of the parameters that belong to it.
    pub owned: usize,
    /// Those of them that this rank holds.
    pub shard: usize,
    /// Its parameters that belong to an earlier unit.
    pub tied: Vec<Tied>,
    /// What a micro-batch takes.
    pub activations: Activations,
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
    /// Elements of all its parameters.
    pub fn elements(&self) -> usize {
        self.owned + self.tied.iter().map(|tied| tied.elements).sum::<usize>()
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
    /// What units of the micro-batch share: made by the first of them, and there until the step's end.
    pub shared: u64,
}
