//! Programs of several ranks, good ones and broken ones.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::host::{Element, Kind};
use crate::mesh::Degrees;
use crate::program::Action;
use crate::step::{self, Strategy as Step};

const UNITS: usize = 3;

fn mesh(replicas: usize, shards: usize, tensor: usize) -> Mesh {
    let degrees = Degrees {
        pipeline: 1,
        data_replicate: replicas as i64,
        data_shard: shards as i64,
        context: 1,
        tensor: tensor as i64,
        expert: 1,
    };
    Mesh::new(degrees, replicas * shards * tensor).unwrap()
}

/// Units of 100, 200, .. parameters, the last of which shares ten with the first; the ranks that split them gather their
/// inputs and sum their outputs, and a tenth of the gradients.
fn sizes(units: usize, [replicas, shards, tensor]: [usize; 3]) -> Sizes {
    let activations = Activations {
        output: 1 << 10,
        graph: 8 << 10,
        forward: 1 << 10,
        plain_forward: 4 << 10,
        backward: 2 << 10,
        shared: 0,
        put_off: 0,
    };
    let unit = |unit: usize| {
        let owned = 100 * (unit + 1);
        let tied = Tied { owner: 0, elements: 10, shard: 10_usize.div_ceil(shards) };
        let tied = if unit > 0 && unit + 1 == units { vec![tied] } else { vec![] };
        let sum = |kind| Operation {
            scope: Scope::Tensor,
            kind,
            unit: None,
            count: 64,
            own: 64_usize.div_ceil(tensor),
            element: Element::F32,
        };
        let exchanges = Exchanges {
            forward: vec![sum(Kind::AllGather), sum(Kind::ReduceScatter)],
            backward: vec![sum(Kind::AllGather), sum(Kind::ReduceScatter)],
        };
        UnitSizes {
            owned,
            shard: owned.div_ceil(shards),
            tied,
            output: 0,
            tied_apart: 0,
            experts: 0,
            expert_shard: 0,
            partial: vec![(Scope::Tensor, owned / 10)],
            exchanges,
            activations,
        }
    };
    Sizes {
        units: (0..units).map(unit).collect(),
        shards,
        expert: 1,
        expert_shards: 1,
        expert_loads: 0,
        replicas,
        tensor,
        holders: 1,
        context: 1,
        pipeline: 1,
        world: replicas * shards * tensor,
        compute: Element::F32,
        reduce: Element::F32,
        quantized: Quantized::default(),
        separate: false,
        offload: false,
        optimizer_state: 0,
        gathered_by_optimizer: 0,
        optimizer_working: 0,
        micro_batch: 0,
    }
}

fn strategy(bits: usize, [replicas, _, tensor]: [usize; 3]) -> Step {
    Step {
        micro_batches: 1 + bits % 2 * 2,
        recompute: bits & 2 != 0,
        reshard_after_forward: bits & 4 != 0,
        reduce_every_micro_batch: bits & 8 != 0,
        replicas,
        split: tensor > 1,
        experts: false,
    }
}

fn class(bits: usize, degrees: [usize; 3]) -> Class {
    let program = step::training(UNITS, &strategy(bits, degrees));
    Class { program, sizes: sizes(UNITS, degrees) }
}

#[test]
fn written_programs_pass_on_every_mesh() {
    for bits in 0..16 {
        for replicas in 1..4 {
            for shards in 1..4 {
                for tensor in 1..3 {
                    let class = class(bits, [replicas, shards, tensor]);
                    check_all(&mesh(replicas, shards, tensor), &[class], |_| 0).unwrap();
                }
            }
        }
    }
}

/// The operations of a rank's groups along one scope: what, and at which action.
fn sequence(class: &Class, scope: Scope) -> Vec<(Operation, usize, Action)> {
    let Class { program, sizes } = class;
    let begun = program.actions.iter().enumerate().flat_map(|(at, action)| {
        let operations = operations(action, program.micro_batches, sizes);
        operations.into_iter().map(move |operation| (operation, at, *action))
    });
    begun.filter(|(operation, ..)| operation.scope == scope).collect()
}

/// A change to one action of a program.
#[derive(Debug, Clone, Copy)]
enum Break {
    Drop,
    Swap,
    Duplicate,
    OtherUnit,
}

fn broken(class: &Class, at: usize, how: Break) -> Class {
    let mut class = class.clone();
    let actions = &mut class.program.actions;
    let at = at % (actions.len() - 1);
    match how {
        Break::Drop => drop(actions.remove(at)),
        Break::Swap => actions.swap(at, at + 1),
        Break::Duplicate => actions.insert(at, actions[at]),
        Break::OtherUnit => match &mut actions[at] {
            Action::Gather { unit }
            | Action::Unshard { unit }
            | Action::Forward { unit, .. }
            | Action::Reshard { unit }
            | Action::Backward { unit, .. }
            | Action::SumPartialGradients { unit }
            | Action::ReduceGradients { unit }
            | Action::AllReduceGradients { unit }
            | Action::AwaitGradients { unit } => *unit = (*unit + 1) % UNITS,
            _ => {}
        },
    }
    class
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// One rank among several does otherwise: if its groups see it, both ranks, both operations and their place are
    /// named; if not, it is its own program that is wrong, or all is still well.
    #[test]
    fn a_broken_rank_is_named(
        bits in 0_usize..16,
        replicas in 1_usize..4,
        shards in 1_usize..4,
        tensor in 1_usize..3,
        culprit in any::<usize>(),
        at in any::<usize>(),
        how in prop_oneof![
            Just(Break::Drop), Just(Break::Swap), Just(Break::Duplicate), Just(Break::OtherUnit)
        ],
    ) {
        let mesh = mesh(replicas, shards, tensor);
        let culprit = culprit % mesh.world_size();
        let good = class(bits, [replicas, shards, tensor]);
        let classes = [good.clone(), broken(&good, at, how)];
        let class_of = |rank| usize::from(rank == culprit);
        let expected = Scope::ALL.into_iter().filter(|scope| scope.size(&mesh) > 1).filter_map(|scope| {
            let first = scope.first(&mesh, culprit);
            // The first rank of a group is held against each of the others.
            let group = mesh.group_of(first, scope.axes());
            let other = if first == culprit { group[1] } else { culprit };
            let [a, b] = [first, other].map(|rank| sequence(&classes[class_of(rank)], scope));
            let index = (0..a.len().max(b.len()))
                .find(|i| a.get(*i).map(|x| x.0) != b.get(*i).map(|x| x.0))?;
            let begun = |rank, operations: &[(Operation, usize, Action)]| {
                group::Begun { rank, operation: operations.get(index).copied() }
            };
            let (first, other) = (begun(first, &a), begun(other, &b));
            Some(Disagreement { scope, index, first, other })
        });
        let expected: Vec<Disagreement> = expected.collect();
        match group::check(&mesh, &classes, class_of) {
            Err(CheckError::Disagreement(found)) => prop_assert!(expected.contains(&found), "{found}"),
            // Nothing is begun in another order, but something is waited for too early.
            Err(CheckError::Stuck(_)) => prop_assert!(expected.is_empty()),
            Err(other) => prop_assert!(false, "{other}"),
            Ok(()) => prop_assert!(expected.is_empty(), "{:?} is not seen", expected),
        }
        let own = rank::prove(
            &classes[1].program,
            rank::Sharing { copies: replicas > 1, split: tensor > 1, experts: false },
        );
        let all = check_all(&mesh, &classes, class_of);
        match own {
            Err(error) => prop_assert_eq!(all, Err(CheckError::Program { rank: culprit, error })),
            Ok(()) => prop_assert_eq!(all.is_ok(), expected.is_empty()),
        }
    }
}

/// A program that is sound by itself, but gathers in another order than its peers.
#[test]
fn complaints_name_both_ranks_and_both_operations() {
    let good = class(0, [2, 2, 1]);
    let mut other = good.clone();
    other.program.actions.swap(0, 1);
    let complaint = |class_of: &dyn Fn(usize) -> usize| {
        check_all(&mesh(2, 2, 1), &[good.clone(), other.clone()], class_of).unwrap_err().to_string()
    };
    assert_eq!(
        complaint(&|rank| usize::from(rank == 3)),
        "operation 0 of a group along dp_shard: rank 2 begins all_gather of 100 x f32 of unit 0 \
         (action 0, Gather(0)), but rank 3 begins all_gather of 200 x f32 of unit 1 (action 0, Gather(1))"
    );
    // One group may do otherwise than another, as long as its ranks agree.
    assert!(check_all(&mesh(2, 2, 1), &[good.clone(), other.clone()], |rank| rank / 2).is_ok());
    let mut shorter = good.clone();
    shorter.program.actions.retain(|action| *action != Action::OptimizerStep);
    shorter.sizes.gathered_by_optimizer = 7;
    let mut longer = good.clone();
    longer.sizes.gathered_by_optimizer = 7;
    let classes = [longer, shorter];
    assert_eq!(
        group::check(&mesh(1, 2, 1), &classes, |rank| rank).unwrap_err().to_string(),
        "operation 7 of a group along dp_shard: rank 0 begins all_to_all of 7 x f32 (action 25, \
         OptimizerStep), but rank 1 does no more"
    );
    let complaint = check_all(&mesh(1, 2, 1), &classes, |rank| rank).unwrap_err().to_string();
    assert_eq!(complaint, "rank 1, action 25 of the step, end: the optimizer took no step");
    // The same operations, but not of the same sizes.
    let mut wider = good.clone();
    wider.sizes.units[1].owned = 201;
    let complaint = check_all(&mesh(2, 2, 1), &[good.clone(), wider], |rank| rank / 3).unwrap_err();
    assert!(complaint.to_string().contains("all_gather of 201 x f32 of unit 1"), "{complaint}");
    let mut alone = good.clone();
    alone.program.actions.retain(|action| !matches!(action, Action::AllReduceGradients { .. }));
    assert_eq!(
        check_all(&mesh(2, 2, 1), &[alone], |_| 0).unwrap_err().to_string(),
        "rank 0, action 18 of the step, AwaitGradients(2): the sum is not taken over the copies of \
         the model"
    );
}

/// Each group sees one order, but one rank waits for the copies' sum before it begins the gather for which its
/// neighbour waits before it begins that sum.
#[test]
fn ranks_that_wait_for_each_other_are_found() {
    let good = class(2 + 4, [2, 2, 1]);
    let sums = [Action::AllReduceGradients { unit: 2 }, Action::AwaitGradients { unit: 2 }];
    let after = |action: Action| {
        let mut class = good.clone();
        let actions = &mut class.program.actions;
        actions.retain(|action| !sums.contains(action));
        let place = actions.iter().rposition(|other| *other == action).unwrap() + 1;
        actions.splice(place..place, sums);
        class
    };
    let early = after(Action::ReduceGradients { unit: 2 });
    let late = after(Action::Unshard { unit: 0 });
    let classes = [early, late];
    // Ranks 0 and 1 share parameters, 0 and 2 are copies. Rank 1 is the one that both meet.
    check_all(&mesh(2, 2, 1), &classes, |_| 0).unwrap();
    check_all(&mesh(2, 2, 1), &classes, |_| 1).unwrap();
    check_all(&mesh(2, 2, 1), &classes, |rank| rank / 2).unwrap();
    assert_eq!(
        check_all(&mesh(2, 2, 1), &classes, |rank| usize::from(rank != 0)).unwrap_err().to_string(),
        "the ranks wait for each other: rank 0 at action 16, AwaitGradients(2), for operation 0 of \
         its group along dp_replicate"
    );
}

/// Two units on two ranks, counted by hand.
#[test]
fn memory_is_counted_as_tensors_live() {
    let activations =
        Activations { output: 1000, graph: 5000, forward: 10, backward: 700, ..Default::default() };
    let unit = |owned| UnitSizes { owned, shard: owned / 2, activations, ..UnitSizes::default() };
    let sizes =
        Sizes { units: vec![unit(100), unit(200)], optimizer_state: 1200, ..sizes(0, [1, 2, 1]) };
    let found = footprint(&step::training(2, &Step::default()), &sizes);
    // Both graphs, the outputs that they share, all parameters in full, and what the backward takes.
    let memory = Memory {
        parameters: 4 * 150,
        optimizer_state: 1200,
        gathered: 4 * 300,
        activations: 2 * 6000,
        working: 700,
        ..Memory::default()
    };
    assert_eq!(
        found.peak,
        Moment { index: 6, action: Action::Backward { unit: 1, micro: 0 }, memory }
    );
    // The gradient of unit 1, and then its bucket, its shard of the sum and the other rank's message, when that of
    // unit 0 begins to be reduced.
    assert_eq!(found.most.gradients, 800);
    assert_eq!(found.most.buckets, (800 + 400 + 400) + 400);
    assert_eq!(found.host, Memory::default());

    // The same with everything that rests in the memory of the host.
    let away = Sizes { separate: true, offload: true, ..sizes.clone() };
    let found = footprint(&step::training(2, &Step::default()), &away);
    assert_eq!((found.most.parameters, found.host.parameters), (0, 600));
    assert_eq!((found.most.gradients, found.host.gradients), (800, 600));
    assert_eq!((found.most.buckets, found.host.buckets), (0, 2000));
    assert_eq!(found.peak.memory.total(), memory.total() - 600 - 1200);

    // One graph at a time; beside it, at the last backward, the outputs of both units and the gradient between them.
    let free = Step { recompute: true, reshard_after_forward: true, ..Step::default() };
    let found = footprint(&step::training(2, &free), &sizes);
    let peak = Action::Backward { unit: 0, micro: 0 };
    assert_eq!((found.peak.action, found.peak.memory.activations), (peak, 5000 + 3 * 1000));
}

#[test]
fn a_thousand_ranks_take_no_time() {
    let units = 130;
    let program = step::training(units, &strategy(2 + 4 + 8, [1; 3]));
    let start = Instant::now();
    for (replicas, shards) in [(1, 1024), (16, 1024)] {
        let class = Class { program: program.clone(), sizes: sizes(units, [replicas, shards, 1]) };
        let result = check_all(&mesh(replicas, shards, 1), &[class], |_| 0);
        assert_eq!(result.is_ok(), replicas == 1);
    }
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 1.0, "{seconds} s");
}
