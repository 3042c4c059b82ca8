//! How much memory a rank's program takes, and when it takes most.
//!
//! [`footprint`] goes through a program as the executor does and holds, in place of each tensor, the number of its
//! bytes. A tensor that two things share is counted once, and until both have let it go: a kept graph holds the
//! unit's full parameters also after `Reshard`, parameters are parts of the bucket that they came in, and a unit's
//! output is the next one's input.

use std::collections::HashMap;

use super::group::Scope;
use super::memory::{Footprint, Memory, Meter, Tensor};
use super::sizes::{Activations, Part, Sizes, UnitSizes};
use crate::host::{Element, messages_in_flight};
use crate::program::{Action, Keep, Program};

/// The memory that a checked program takes on a rank.
///
/// # Panics
/// If the program is not sound ([`super::check`]), or the sizes are of another model.
pub fn footprint(program: &Program, sizes: &Sizes) -> Footprint {
    let mut walk = Walk::new(program, sizes);
    for (index, action) in program.actions.iter().enumerate() {
        walk.meter.begin(index, *action);
        walk.run(action);
    }
    walk.meter.footprint()
}

/// An operation of a group, by its number.
type Ticket = (Scope, usize);

/// A unit's full parameters on their way.
struct Gathering {
    /// The parameters, or the blocks that they are made of.
    arriving: Tensor,
    _sent: Tensor,
    tickets: Vec<Ticket>,
}

/// A unit's gradients on their way.
enum Reducing {
    /// There is no other rank.
    Here(Tensor),
    Summing {
        /// The whole bucket, while it is summed over the ranks that share the parameters.
        whole: Option<Tensor>,
        /// This rank's shard of the sum.
        shard: Tensor,
        ticket: Ticket,
    },
}

/// A sum of gradients on this rank's shard.
struct Sum {
    tensor: Tensor,
    /// Whether it is parts of the bucket that it came in: then it cannot be added to in place.
    in_bucket: bool,
}

enum Kept {
    Input(Tensor),
    Graph {
        _input: Tensor,
        _output: Tensor,
        _graph: Tensor,
        parameters: Option<Tensor>,
    },
    /// What the gradients of the weights wait with.
    PutOff {
        _tensors: Tensor,
        _parameters: Option<Tensor>,
    },
}

/// What is alive between the actions; named as in the executor's pass.
struct Walk<'a> {
    sizes: &'a Sizes,
    meter: Meter,
    gathering: Vec<Option<Gathering>>,
    unsharded: Vec<Option<Tensor>>,
    kept: HashMap<(usize, usize), Kept>,
    /// Outputs that the unit after has not used yet, by unit and micro-batch.
    flow: HashMap<(usize, usize), Tensor>,
    /// What the units of each micro-batch share.
    shared: Vec<Option<Tensor>>,
    /// Gradients of units' outputs, by unit and micro-batch.
    output_gradient: HashMap<(usize, usize), Tensor>,
    /// Whole gradients, with their elements.
    unreduced: Vec<Option<(Tensor, usize)>>,
    /// By unit, and part of its parameters.
    reducing: Vec<Vec<Reducing>>,
    gradients: Vec<Vec<Sum>>,
    /// The messages of the last operation of each scope, until it is waited for. A group's operations run one after
    /// the other, so that those before have no more of them.
    messages: HashMap<Scope, (Ticket, Tensor)>,
    /// Operations begun.
    begun: usize,
    /// What is there from the step's begin to its end.
    _at_rest: Vec<Tensor>,
}

impl<'a> Walk<'a> {
    fn new(program: &Program, sizes: &'a Sizes) -> Self {
        let first = program.actions.first().copied().unwrap_or(Action::OptimizerStep);
        let mut walk = Self {
            sizes,
            meter: Meter::new(first),
            gathering: none(program.units),
            unsharded: none(program.units),
            kept: HashMap::new(),
            flow: HashMap::new(),
            shared: none(program.micro_batches),
            output_gradient: HashMap::new(),
            unreduced: none(program.units),
            reducing: (0..program.units).map(|_| vec![]).collect(),
            gradients: (0..program.units).map(|_| vec![]).collect(),
            messages: HashMap::new(),
            begun: 0,
            _at_rest: vec![],
        };
        let elements: usize = sizes.units.iter().map(|unit| unit.shard + unit.expert_shard).sum();
        let parameters = 4 * elements as u64;
        let optimizer_state = sizes.optimizer_state;
        let activations = sizes.micro_batch * program.micro_batches as u64;
        walk._at_rest = vec![
            walk.at_home(Memory { parameters, optimizer_state, ..Memory::default() }),
            walk.activations(activations),
        ];
        walk
    }

    fn run(&mut self, action: &Action) {
        match *action {
            Action::Gather { unit } => self.gather(unit),
            Action::Unshard { unit } => self.unshard(unit),
            Action::Forward { unit, micro, keep } => self.forward(unit, micro, keep),
            Action::Backward { unit, micro } => self.backward(unit, micro),
            Action::BackwardWeight { unit, micro } => self.backward_weight(unit, micro),
            Action::BackwardInput { unit, micro } => self.backward_input(unit, micro),
            Action::SendActivation { unit, micro } => drop(self.flow.remove(&(unit, micro))),
            Action::SendGradient { unit, micro } => {
                drop(self.output_gradient.remove(&(unit, micro)));
            }
            Action::ReceiveActivation { unit, micro } => {
                let output = self.activations(self.unit(unit).activations.output);
                self.flow.insert((unit, micro), output);
            }
            Action::ReceiveGradient { unit, micro } => {
                let gradient = self.activations(self.unit(unit).activations.output);
                self.output_gradient.insert((unit, micro), gradient);
            }
            Action::SumTiedGradients { .. } => {}
            Action::Reshard { unit } => self.unsharded[unit] = None,
            Action::ReduceGradients { unit } => self.reduce(unit),
            Action::AllReduceGradients { unit } => self.all_reduce(unit),
            Action::AwaitGradients { unit } => self.reduced(unit),
            Action::SumPartialGradients { unit } => self.sum_partial(unit),
            Action::SumExpertLoads | Action::ClipGradientNorm => {}
            Action::OptimizerStep => {
                let working = self.sizes.optimizer_working;
                let _working = self.at_home(Memory { working, ..Memory::default() });
                self.gradients.fill_with(Vec::new);
            }
        }
    }

    fn unit(&self, unit: usize) -> &'a UnitSizes {
        &self.sizes.units[unit]
    }

    fn gather(&mut self, unit: usize) {
        let Sizes { compute, quantized, .. } = *self.sizes;
        let sizes = self.unit(unit);
        let tied = sizes.tied.iter().map(|tied| Part::tied(tied.elements, tied.shard));
        let (mut sends, mut arriving) = (Vec::new(), Memory::default());
        for Part { scope, elements, shard } in sizes.parts().chain(tied) {
            let ranks = self.sizes.ranks(scope);
            if ranks == 1 {
                continue;
            }
            let sent = match self.sizes.gathered_blocks(scope, elements) {
                Some(blocks) => {
                    arriving.buckets += quantized.bytes(ranks * blocks);
                    quantized.bytes(blocks)
                }
                None => {
                    arriving.gathered += bytes(elements, compute);
                    bytes(shard, compute)
                }
            };
            match sends.iter_mut().find(|(other, _)| *other == scope) {
                Some((_, all)) => *all += sent,
                None => sends.push((scope, sent)),
            }
        }
        if sends.is_empty() {
            return;
        }
        let _sent = self.bucket(sends.iter().map(|(_, sent)| sent).sum());
        let arriving = self.at_home(arriving);
        let exchange = |(scope, sent)| self.exchange(scope, self.sizes.ranks(scope), sent);
        let tickets = sends.into_iter().map(exchange).collect();
        self.gathering[unit] = Some(Gathering { arriving, _sent, tickets });
    }

    fn unshard(&mut self, unit: usize) {
        let Sizes { compute, offload, .. } = *self.sizes;
        let elements = self.unit(unit).elements();
        let gathered = bytes(elements, compute);
        // Parameters at rest that are full may be of the dtype and in the place to compute.
        let as_they_are = compute == Element::F32 && !offload;
        let Some(gathering) = self.gathering[unit].take() else {
            let full = (!as_they_are).then(|| self.hold(Memory { gathered, ..Memory::default() }));
            self.unsharded[unit] = full;
            return;
        };
        for ticket in gathering.tickets {
            self.arrived(ticket);
        }
        let alone = self.unit(unit).parts().filter(|part| self.sizes.ranks(part.scope) == 1);
        let alone: usize = alone.map(|part| part.elements).sum();
        let gathered = match as_they_are {
            true => bytes(elements - alone, compute),
            false => gathered,
        };
        let blocks = gathering.arriving.memory.buckets > 0;
        self.unsharded[unit] = Some(if blocks || offload {
            // The ranks' parts are made of their blocks one by one, and then put together.
            let _parts =
                blocks.then(|| self.at_home(Memory { working: gathered, ..Memory::default() }));
            self.hold(Memory { gathered, ..Memory::default() })
        } else {
            gathering.arriving
        });
    }

    fn forward(&mut self, unit: usize, micro: usize, keep: Keep) {
        let Activations { output, graph, forward, plain_forward, shared, .. } =
            self.unit(unit).activations;
        if shared > 0 && self.shared[micro].is_none() {
            self.shared[micro] = Some(self.activations(shared));
        }
        let (input, first) = match self.kept.remove(&(unit, micro)) {
            Some(Kept::Input(input)) => (input, false),
            // The first unit's inputs are the tokens, which are at rest.
            _ if unit == 0 => (self.activations(0), true),
            _ => (self.flow.remove(&(unit - 1, micro)).expect("the unit before has run"), true),
        };
        let output = self.activations(output);
        if keep == Keep::Graph {
            let graph = self.activations(graph);
            drop(self.working(forward));
            let parameters = self.unsharded[unit].clone();
            let graph =
                Kept::Graph { _input: input, _output: output.clone(), _graph: graph, parameters };
            self.kept.insert((unit, micro), graph);
        } else {
            drop(self.working(plain_forward));
            if keep == Keep::Input {
                self.kept.insert((unit, micro), Kept::Input(input));
            }
        }
        if first {
            self.flow.insert((unit, micro), output);
        }
    }

    fn backward_input(&mut self, unit: usize, micro: usize) {
        let Activations { backward, put_off, .. } = self.unit(unit).activations;
        let kept = self.kept.remove(&(unit, micro));
        let output_gradient = self.output_gradient.remove(&(unit, micro));
        drop(self.working(backward));
        let _parameters = match &kept {
            Some(Kept::Graph { parameters, .. }) => parameters.clone(),
            _ => None,
        };
        drop((kept, output_gradient));
        let waiting = Kept::PutOff { _tensors: self.activations(put_off), _parameters };
        self.kept.insert((unit, micro), waiting);
        if put_off == 0 {
            self.take_gradients(unit);
        }
        if unit > 0 {
            let gradient = self.activations(self.unit(unit - 1).activations.output);
            self.output_gradient.insert((unit - 1, micro), gradient);
        }
    }

    fn backward_weight(&mut self, unit: usize, micro: usize) {
        drop(self.kept.remove(&(unit, micro)));
        self.take_gradients(unit);
    }

    fn take_gradients(&mut self, unit: usize) {
        let sizes = self.unit(unit);
        self.accumulate(unit, sizes.owned + sizes.experts);
        for tied in &sizes.tied {
            self.accumulate(tied.owner, tied.elements);
        }
    }

    fn backward(&mut self, unit: usize, micro: usize) {
        let sizes = self.unit(unit);
        let kept = self.kept.remove(&(unit, micro));
        let output_gradient = self.output_gradient.remove(&(unit, micro));
        drop(self.working(sizes.activations.backward));
        drop((kept, output_gradient));
        if unit > 0 {
            let gradient = self.activations(self.unit(unit - 1).activations.output);
            self.output_gradient.insert((unit - 1, micro), gradient);
        }
        self.take_gradients(unit);
    }

    /// Adds a gradient of so many elements to those of a unit.
    fn accumulate(&mut self, unit: usize, elements: usize) {
        // A tied parameter's gradient comes first from the unit that shares it; then it is added to.
        let before = self.unreduced[unit].take().map_or(0, |(_, elements)| elements);
        let sizes = self.unit(unit);
        let elements = (before + elements).min(sizes.owned + sizes.experts);
        let gradients = 4 * elements as u64;
        let tensor = self.hold(Memory { gradients, ..Memory::default() });
        self.unreduced[unit] = Some((tensor, elements));
    }

    /// What is summed is packed beside the gradients, and they are then parts of the sum.
    fn sum_partial(&mut self, unit: usize) {
        for (scope, elements) in &self.unit(unit).partial {
            let ranks = self.sizes.ranks(*scope);
            let packed = bytes(*elements, self.sizes.reduce);
            let _packed = self.hold(Memory { buckets: packed, ..Memory::default() });
            let buckets = messages_in_flight(ranks, packed.div_ceil(ranks as u64));
            drop(self.meter.hold(Memory { buckets, ..Memory::default() }, self.sizes.separate));
        }
    }

    fn reduce(&mut self, unit: usize) {
        let Some((gradients, _)) = self.unreduced[unit].take() else { return };
        let parts: Vec<Part> = self.unit(unit).parts().collect();
        if parts.len() < 2 {
            let reducing = match parts.first() {
                Some(part) => self.reduce_part(*part, gradients),
                None => Reducing::Here(gradients),
            };
            self.reducing[unit] = vec![reducing];
            return;
        }
        drop(gradients);
        let whole = |part: &Part| {
            let gradients = 4 * part.elements as u64;
            self.hold(Memory { gradients, ..Memory::default() })
        };
        let each: Vec<Tensor> = parts.iter().map(whole).collect();
        let pairs = parts.into_iter().zip(each);
        self.reducing[unit] =
            pairs.map(|(part, gradients)| self.reduce_part(part, gradients)).collect();
    }

    fn reduce_part(&mut self, part: Part, gradients: Tensor) -> Reducing {
        let Part { scope, elements, shard } = part;
        let ranks = self.sizes.ranks(scope);
        if ranks * self.sizes.replicas == 1 {
            return Reducing::Here(gradients);
        }
        let packed = bytes(elements, self.sizes.sum(scope, elements));
        if self.sizes.offload {
            // Packed on the device, and moved.
            drop(self.working(packed));
        }
        let mut whole = self.bucket(packed);
        drop(gradients);
        let mut arriving = bytes(shard, self.sizes.reduce);
        let mut sent = arriving;
        if let Some(blocks) = self.sizes.reduced_blocks(scope, elements) {
            sent = self.sizes.quantized.bytes(blocks);
            arriving = ranks as u64 * sent;
            // The bucket goes when its blocks are made.
            whole = self.bucket(arriving);
        }
        let ticket = self.exchange(scope, ranks, sent);
        if ranks == 1 {
            Reducing::Summing { whole: None, shard: whole, ticket }
        } else {
            Reducing::Summing { whole: Some(whole), shard: self.bucket(arriving), ticket }
        }
    }

    fn all_reduce(&mut self, unit: usize) {
        let parts: Vec<Part> = self.unit(unit).parts().collect();
        let sums = std::mem::take(&mut self.reducing[unit]);
        for (number, sum) in sums.into_iter().enumerate() {
            let sum = match sum {
                Reducing::Summing { whole, shard, ticket } => {
                    let shard = self.summed(parts[number], whole, shard, ticket);
                    let replicas = self.sizes.replicas;
                    let piece = shard.memory.buckets / replicas as u64;
                    let ticket = self.exchange(Scope::Replicate, replicas, piece);
                    Reducing::Summing { whole: None, shard, ticket }
                }
                here => here,
            };
            self.reducing[unit].push(sum);
        }
    }

    /// Waits for a sum of gradients; gives this rank's shard of it.
    fn summed(
        &mut self,
        part: Part,
        whole: Option<Tensor>,
        arrived: Tensor,
        ticket: Ticket,
    ) -> Tensor {
        self.arrived(ticket);
        let Part { scope, elements, shard } = part;
        // Where the sum is over the ranks that share the gradients, and these are blocks: they become numbers
        // before they are added.
        let is_of_blocks = whole.is_some() && self.sizes.reduced_blocks(scope, elements).is_some();
        drop(whole);
        if !is_of_blocks {
            return arrived;
        }
        let working = 4 * (shard * self.sizes.ranks(scope)) as u64;
        let _numbers = self.at_home(Memory { working, ..Memory::default() });
        self.bucket(4 * shard as u64)
    }

    fn reduced(&mut self, unit: usize) {
        let parts: Vec<Part> = self.unit(unit).parts().collect();
        let sums = std::mem::take(&mut self.reducing[unit]);
        let mut before = std::mem::take(&mut self.gradients[unit]).into_iter();
        for (number, sum) in sums.into_iter().enumerate() {
            let before = before.next();
            let sum = match sum {
                Reducing::Here(tensor) => {
                    Sum { tensor: before.map_or(tensor, |sum| sum.tensor), in_bucket: false }
                }
                Reducing::Summing { whole, shard, ticket } => {
                    let shard = self.summed(parts[number], whole, shard, ticket);
                    self.added(parts[number], before, shard)
                }
            };
            self.gradients[unit].push(sum);
        }
    }

    /// A shard of a sum, added to what there was before.
    fn added(&mut self, part: Part, before: Option<Sum>, shard: Tensor) -> Sum {
        let memory = Memory { gradients: 4 * part.shard as u64, ..Memory::default() };
        let in_bucket = self.sizes.sum(part.scope, part.elements) == Element::F32;
        match before {
            Some(sum) if !sum.in_bucket => sum,
            None if in_bucket => {
                drop(shard);
                Sum { tensor: self.at_home(memory), in_bucket }
            }
            _ => Sum { tensor: self.at_home(memory), in_bucket: false },
        }
    }

    /// Begins an operation of a group of so many ranks, each of which sends this one so many bytes.
    fn exchange(&mut self, scope: Scope, ranks: usize, bytes: u64) -> Ticket {
        self.begun += 1;
        let ticket = (scope, self.begun);
        let buckets = messages_in_flight(ranks, bytes);
        let memory = Memory { buckets, ..Memory::default() };
        self.messages.remove(&scope);
        let messages = self.meter.hold(memory, self.sizes.separate);
        self.messages.insert(scope, (ticket, messages));
        ticket
    }

    /// An operation has been waited for.
    fn arrived(&mut self, ticket: Ticket) {
        let (scope, _) = ticket;
        if self.messages.get(&scope).is_some_and(|(last, _)| *last == ticket) {
            self.messages.remove(&scope);
        }
    }

    fn activations(&self, activations: u64) -> Tensor {
        self.hold(Memory { activations, ..Memory::default() })
    }

    fn working(&self, working: u64) -> Tensor {
        self.hold(Memory { working, ..Memory::default() })
    }

    fn bucket(&self, buckets: u64) -> Tensor {
        self.at_home(Memory { buckets, ..Memory::default() })
    }

    /// A tensor on the device that computes.
    fn hold(&self, memory: Memory) -> Tensor {
        self.meter.hold(memory, false)
    }

    /// A tensor where the parameters rest.
    fn at_home(&self, memory: Memory) -> Tensor {
        self.meter.hold(memory, self.sizes.offload)
    }
}

fn bytes(elements: usize, element: Element) -> u64 {
    (elements * element.size()) as u64
}

fn none<T>(length: usize) -> Vec<Option<T>> {
    (0..length).map(|_| None).collect()
}
