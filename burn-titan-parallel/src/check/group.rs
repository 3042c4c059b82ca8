//! Every group of ranks does the same operations in the same order, and no rank waits for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use thiserror::Error;

use super::sizes::Part;
use super::{CheckError, Class, Sizes};
use crate::host::{Element, Kind};
use crate::mesh::{Axis, Mesh};
use crate::program::Action;

/// Which ranks take part in an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Those that share the parameters: along `dp_shard` and `cp`.
    Shard,
    /// Those that have all experts together: neighbours along `ep`.
    Expert,
    /// Those that share the parameters of the same experts: neighbours along `ep_shard`.
    ExpertShard,
    /// Those that hold the same shard, one in each copy of the model: neighbours along `dp_replicate`.
    Replicate,
    /// Those that split matrix products: neighbours along `tp`.
    Tensor,
    /// Those of `tp` that have the same part of a parameter.
    Holders,
    /// Those that share each sequence: neighbours along `cp`.
    Context,
    /// Two neighbours along `pp`, of which one sends and the other receives.
    Message,
    /// Two neighbours along `pp` that have a parameter together.
    Tied,
    /// Those that hold one copy of the model together: along all axes but `dp_replicate`.
    Norm,
    /// All.
    World,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 11] = [
        Self::Shard,
        Self::Expert,
        Self::ExpertShard,
        Self::Replicate,
        Self::Tensor,
        Self::Holders,
        Self::Context,
        Self::Message,
        Self::Tied,
        Self::Norm,
        Self::World,
    ];

    /// Whether all neighbours along its axes take part in each of its operations. What only two of them do is proven
    /// with the pipeline's schedule.
    fn is_whole(self) -> bool {
        !matches!(self, Self::Message | Self::Tied)
    }

    /// The axes along which its ranks differ.
    pub fn axes(self) -> &'static [Axis] {
        match self {
            Self::Shard => &[Axis::DataShard, Axis::Context],
            Self::Expert => &[Axis::Expert],
            Self::ExpertShard => &[Axis::ExpertShard],
            Self::Replicate => &[Axis::DataReplicate],
            Self::Tensor | Self::Holders => &[Axis::Tensor],
            Self::Context => &[Axis::Context],
            Self::Message | Self::Tied => &[Axis::Pipeline],
            Self::Norm => &[Axis::Pipeline, Axis::DataShard, Axis::Context, Axis::Tensor],
            Self::World => &Axis::ALL,
        }
    }

    /// Most ranks of a group.
    pub fn size(self, mesh: &Mesh) -> usize {
        self.axes().iter().map(|axis| mesh.degree(*axis)).product()
    }

    /// The first rank of the group of `rank`.
    pub fn first(self, mesh: &Mesh, rank: usize) -> usize {
        self.axes().iter().fold(rank, |rank, axis| mesh.first(rank, *axis))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shard => "dp_shard",
            Self::Expert => "ep",
            Self::ExpertShard => "ep_shard",
            Self::Replicate => "dp_replicate",
            Self::Tensor => "tp",
            Self::Holders => "tp (heads)",
            Self::Context => "cp",
            Self::Message => "pp",
            Self::Tied => "pp (tied)",
            Self::Norm => "norm",
            Self::World => "all",
        })
    }
}

/// An operation of a group, as far as all its ranks must agree; with what one of them has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Its ranks.
    pub scope: Scope,
    /// What is done.
    pub kind: Kind,
    /// The unit that it is about.
    pub unit: Option<usize>,
    /// Elements in all.
    pub count: usize,
    /// Those of them that are the first rank's shard; of a message, what it sends of it.
    pub own: usize,
    /// Their type.
    pub element: Element,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} x {}", self.kind.name(), self.count, self.element)?;
        match self.unit {
            Some(unit) => write!(f, " of unit {unit}"),
            None => Ok(()),
        }
    }
}

/// The operations that an action begins, in order, as the executor does. What one rank alone would do is not among
/// them.
pub fn operations(action: &Action, micro_batches: usize, sizes: &Sizes) -> Vec<Operation> {
    let Sizes { world, compute, reduce, .. } = *sizes;
    let of = |unit: usize| &sizes.units[unit];
    let operation = |scope, kind, unit, count: usize, element| {
        let own = count.div_ceil(sizes.ranks(scope));
        Operation { scope, kind, unit, count, own, element }
    };
    // The words and the scales of int8 blocks, of which each rank has so many to send.
    let quantized = |scope, kind, unit, blocks| {
        let words = sizes.quantized.words(blocks);
        [(words, Element::I32), (blocks, Element::F32)].map(|(count, element)| {
            operation(scope, kind, Some(unit), sizes.ranks(scope) * count, element)
        })
    };
    let all = match *action {
        Action::Gather { unit } => {
            let tied = of(unit).tied.iter();
            let tied = tied.map(|tied| Part::tied(tied.elements, tied.shard));
            let gather = |Part { scope, elements, shard }| match sizes
                .gathered_blocks(scope, elements)
            {
                Some(blocks) => quantized(scope, Kind::AllGather, unit, blocks).to_vec(),
                None => {
                    let gather = operation(scope, Kind::AllGather, Some(unit), elements, compute);
                    vec![Operation { own: shard, ..gather }]
                }
            };
            of(unit).parts().chain(tied).flat_map(gather).collect()
        }
        Action::Forward { unit, .. } => of(unit).exchanges.forward.clone(),
        Action::Backward { unit, .. } | Action::BackwardInput { unit, .. } => {
            of(unit).exchanges.backward.clone()
        }
        Action::SendActivation { unit, .. } | Action::SendGradient { unit, .. } => {
            let count = of(unit).output;
            let message = operation(Scope::Message, Kind::SendReceive, Some(unit), count, compute);
            vec![Operation { own: count, ..message }]
        }
        Action::ReceiveActivation { unit, .. } | Action::ReceiveGradient { unit, .. } => {
            let count = of(unit).output;
            let message = operation(Scope::Message, Kind::SendReceive, Some(unit), count, compute);
            vec![Operation { own: 0, ..message }]
        }
        Action::SumTiedGradients { unit } => {
            let count = of(unit).tied_apart;
            vec![operation(Scope::Tied, Kind::AllReduce, Some(unit), count, reduce)]
        }
        Action::SumPartialGradients { unit } => {
            let sums = of(unit).partial.iter();
            sums.map(|(scope, count)| {
                operation(*scope, Kind::AllReduce, Some(unit), *count, reduce)
            })
            .collect()
        }
        Action::ReduceGradients { unit } => {
            let reduce = |Part { scope, elements, .. }| {
                match sizes.reduced_blocks(scope, elements) {
                    // Each rank sends every other its part of the blocks.
                    Some(blocks) => {
                        let blocks = sizes.ranks(scope) * blocks;
                        quantized(scope, Kind::AllToAll, unit, blocks).to_vec()
                    }
                    None => {
                        vec![operation(scope, Kind::ReduceScatter, Some(unit), elements, reduce)]
                    }
                }
            };
            of(unit).parts().flat_map(reduce).collect()
        }
        Action::AllReduceGradients { unit } => {
            let sum = |Part { scope, elements, shard }| {
                let sum = sizes.sum(scope, elements);
                operation(Scope::Replicate, Kind::AllReduce, Some(unit), shard, sum)
            };
            of(unit).parts().map(sum).collect()
        }
        Action::SumExpertLoads => {
            let count = sizes.expert_loads;
            vec![operation(Scope::World, Kind::AllReduce, None, count, Element::I32)]
        }
        Action::ClipGradientNorm => {
            let losses = micro_batches * world;
            vec![
                // The losses of all micro-batches, and the sum of the squares of all gradients.
                operation(Scope::World, Kind::AllGather, None, losses, Element::F32),
                operation(Scope::Norm, Kind::AllReduce, None, 1, Element::F32),
            ]
        }
        Action::OptimizerStep if sizes.gathered_by_optimizer > 0 => {
            // Pieces of matrices to their owners, and back.
            let count = sizes.gathered_by_optimizer;
            vec![operation(Scope::Shard, Kind::AllToAll, None, count, Element::F32); 2]
        }
        _ => vec![],
    };
    let about = action.unit();
    let several = all.into_iter().filter(|operation| sizes.ranks(operation.scope) > 1);
    several.map(|operation| Operation { unit: about, ..operation }).collect()
}

/// An operation of a rank, and where in its step it is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The rank.
    pub rank: usize,
    /// The operation, and the position and the name of the action that begins it; `None` where the rank does no more.
    pub operation: Option<(Operation, usize, Action)>,
}

impl fmt::Display for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.operation {
            Some((operation, index, action)) => {
                write!(f, "rank {} begins {operation} (action {index}, {action})", self.rank)
            }
            None => write!(f, "rank {} does no more", self.rank),
        }
    }
}

/// Two ranks of a group that do not do the same.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("operation {index} of a group along {scope}: {first}, but {other}")]
pub struct Disagreement {
    /// The group's axis.
    pub scope: Scope,
    /// The how-manieth operation of the group, from 0.
    pub index: usize,
    /// The first rank of the group.
    pub first: Begun,
    /// One that does otherwise.
    pub other: Begun,
}

/// Ranks that wait for operations that their peers will never begin, for these wait too.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the ranks wait for each other: rank {rank} at action {index}, {action}, for operation {operation} of its group along {scope}"
)]
pub struct Stuck {
    /// A rank that waits.
    pub rank: usize,
    /// Position of its action.
    pub index: usize,
    /// The action.
    pub action: String,
    /// The group's axis.
    pub scope: Scope,
    /// The how-manieth operation of the group it waits for, from 0.
    pub operation: usize,
}

/// One thing that a rank does with its groups.
enum Event {
    /// Begins its next operation.
    Begin(Operation),
    /// Waits for the how-manieth operation of a group.
    Wait(Scope, usize),
}

/// What the ranks of a class do with their groups.
struct Exchange<'a> {
    class: &'a Class,
    /// With the position of the action that does it.
    events: Vec<(usize, Event)>,
}

impl<'a> Exchange<'a> {
    fn of(class: &'a Class) -> Self {
        let mut begun: HashMap<Scope, usize> = HashMap::new();
        // What a unit's gather, and its reduction, have begun last.
        let (mut gathers, mut reductions) = (HashMap::new(), HashMap::new());
        let mut events = Vec::new();
        for (at, action) in class.program.actions.iter().enumerate() {
            let waits: Vec<(Scope, usize)> = match *action {
                Action::Unshard { unit } => gathers.remove(&unit).unwrap_or_default(),
                Action::AllReduceGradients { unit } | Action::AwaitGradients { unit } => {
                    reductions.remove(&unit).unwrap_or_default()
                }
                _ => vec![],
            };
            events.extend(waits.into_iter().map(|(scope, index)| (at, Event::Wait(scope, index))));
            let operations = operations(action, class.program.micro_batches, &class.sizes);
            let mut pending = Vec::new();
            for operation in operations {
                let next = begun.entry(operation.scope).or_default();
                pending.push((operation.scope, *next));
                *next += 1;
                events.push((at, Event::Begin(operation)));
            }
            match *action {
                Action::Gather { unit } => drop(gathers.insert(unit, pending)),
                Action::ReduceGradients { unit } | Action::AllReduceGradients { unit } => {
                    drop(reductions.insert(unit, pending));
                }
                _ => {
                    let wait = |(scope, index)| (at, Event::Wait(scope, index));
                    events.extend(pending.into_iter().map(wait));
                }
            }
        }
        Self { class, events }
    }

    /// The operations along a scope, with the positions of their actions.
    fn along(&self, scope: Scope) -> impl Iterator<Item = (usize, Operation)> {
        self.events.iter().filter_map(move |(at, event)| match event {
            Event::Begin(operation) if operation.scope == scope => Some((*at, *operation)),
            _ => None,
        })
    }

    /// The first operation along a scope in which two classes differ.
    fn difference(&self, other: &Self, scope: Scope) -> Option<(usize, [Option<usize>; 2])> {
        let (mut ours, mut theirs) = (self.along(scope), other.along(scope));
        for index in 0.. {
            match (ours.next(), theirs.next()) {
                (None, None) => break,
                (Some((_, a)), Some((_, b))) if a == b => {}
                (a, b) => return Some((index, [a, b].map(|begun| begun.map(|(at, _)| at)))),
            }
        }
        None
    }

    /// What `rank` begins at the action at this position along `scope`.
    fn begun(&self, rank: usize, scope: Scope, index: usize, at: Option<usize>) -> Begun {
        let operation = self
            .along(scope)
            .nth(index)
            .zip(at)
            .map(|((_, operation), at)| (operation, at, self.class.program.actions[at]));
        Begun { rank, operation }
    }
}

/// Proves that in every group all ranks begin the same operations in the same order, and that none waits for ever.
pub(super) fn check(
    mesh: &Mesh,
    classes: &[Class],
    class_of: impl Fn(usize) -> usize,
) -> Result<(), CheckError> {
    let exchanges: Vec<Exchange> = classes.iter().map(Exchange::of).collect();
    let mut compared = BTreeSet::new();
    // The classes of each group, and a rank of each class.
    let mut groups: BTreeMap<(Scope, usize), BTreeSet<usize>> = BTreeMap::new();
    let mut ranks = vec![None; classes.len()];
    for rank in 0..mesh.world_size() {
        let class = class_of(rank);
        ranks[class].get_or_insert(rank);
        let scopes = Scope::ALL.into_iter().filter(|scope| scope.is_whole());
        for scope in scopes.filter(|scope| scope.size(mesh) > 1) {
            let first = scope.first(mesh, rank);
            let lead = class_of(first);
            if classes.len() > 1 {
                groups.entry((scope, first)).or_default().insert(class);
            }
            if lead == class || !compared.insert((scope, lead, class)) {
                continue;
            }
            let (a, b) = (&exchanges[lead], &exchanges[class]);
            if let Some((index, [ours, theirs])) = a.difference(b, scope) {
                return Err(Box::new(Disagreement {
                    scope,
                    index,
                    first: a.begun(first, scope, index, ours),
                    other: b.begun(rank, scope, index, theirs),
                })
                .into());
            }
        }
    }
    progress(&exchanges, &groups, &ranks)?;
    Ok(())
}

/// Lets the classes run until all are done, or none can go on. Ranks of one class always go on together, so where
/// there is only one, it does.
fn progress(
    exchanges: &[Exchange],
    groups: &BTreeMap<(Scope, usize), BTreeSet<usize>>,
    ranks: &[Option<usize>],
) -> Result<(), Stuck> {
    let mut peers: BTreeMap<(Scope, usize), BTreeSet<usize>> = BTreeMap::new();
    for ((scope, _), classes) in groups {
        for class in classes {
            peers.entry((*scope, *class)).or_default().extend(classes);
        }
    }
    let mut next = vec![0; exchanges.len()];
    let mut begun: BTreeMap<(Scope, usize), usize> = BTreeMap::new();
    loop {
        let before = next.clone();
        for (class, exchange) in exchanges.iter().enumerate() {
            while let Some((_, event)) = exchange.events.get(next[class]) {
                match event {
                    Event::Begin(operation) => {
                        *begun.entry((operation.scope, class)).or_default() += 1;
                    }
                    Event::Wait(scope, index) => {
                        let has = |peer: &usize| begun.get(&(*scope, *peer)) > Some(index);
                        if !peers.get(&(*scope, class)).is_none_or(|peers| peers.iter().all(has)) {
                            break;
                        }
                    }
                }
                next[class] += 1;
            }
        }
        if next == before {
            break;
        }
    }
    for (class, exchange) in exchanges.iter().enumerate() {
        if let (Some((at, Event::Wait(scope, index))), Some(rank)) =
            (exchange.events.get(next[class]), ranks[class])
        {
            let action = exchange.class.program.actions[*at].to_string();
            return Err(Stuck { rank, index: *at, action, scope: *scope, operation: *index });
        }
    }
    Ok(())
}
