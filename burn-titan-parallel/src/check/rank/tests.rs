//! Programs of one rank, good ones and broken ones.

use super::*;
use crate::step::{self, Strategy};

/// Every way to write a step.
fn strategies() -> impl Iterator<Item = Strategy> {
    (0..64).map(|bits| Strategy {
        micro_batches: 1 + bits % 2 * 2,
        recompute: bits & 2 != 0,
        reshard_after_forward: bits & 4 != 0,
        reduce_every_micro_batch: bits & 8 != 0,
        replicas: 1 + bits / 16 % 2,
        split: bits & 32 != 0,
        experts: bits & 1 != 0,
    })
}

#[test]
fn written_programs_pass() {
    for units in 1..6 {
        for strategy in strategies() {
            let written = step::training(units, &strategy);
            // A graph that is kept needs no parameters of its own, but the executor's unit does.
            check(&written).unwrap_or_else(|error| panic!("{strategy:?}: {error}\n{written}"));
        }
        check(&step::inference(units)).unwrap();
    }
}

/// Leaving out any one action is noticed, and so is doing it twice.
#[test]
fn broken_programs_are_refused() {
    for strategy in strategies() {
        let good = step::training(3, &strategy);
        let Strategy { replicas, split, experts, .. } = strategy;
        let sharing = Sharing { copies: replicas > 1, split, experts };
        let check = |program: &Program| prove(program, sharing);
        for index in 0..good.actions.len() {
            let mut broken = good.clone();
            let left_out = broken.actions.remove(index);
            assert!(check(&broken).is_err(), "nothing misses {left_out} in\n{good}");
            let mut broken = good.clone();
            broken.actions.insert(index, left_out);
            let twice = check(&broken);
            let idempotent = left_out == Action::ClipGradientNorm;
            assert!(twice.is_err() || idempotent, "{left_out} twice passes in\n{good}");
        }
    }
}

#[test]
fn complaints_are_exact() {
    let strategy = Strategy { micro_batches: 2, recompute: true, ..Strategy::default() };
    let good = step::training(3, &strategy);
    let position = |action: Action| good.actions.iter().position(|a| *a == action).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<Action>)| {
        let mut broken = good.clone();
        change(&mut broken.actions);
        check(&broken).unwrap_err().to_string()
    };
    let unshard = position(Action::Unshard { unit: 0 });
    assert_eq!(
        refused(&|actions| actions.swap(unshard, unshard + 1)),
        format!("action {unshard} of the step, Forward(0, 0, Input): the unit is not unsharded")
    );
    let updates = [Action::ClipGradientNorm, Action::OptimizerStep];
    let reason =
        |change: &dyn Fn(&mut Vec<Action>)| refused(change).split_once(": ").unwrap().1.to_string();
    assert_eq!(
        reason(&|actions| actions.retain(|a| !updates.contains(a))),
        "the optimizer took no step"
    );
    assert_eq!(
        reason(&|actions| actions.push(Action::OptimizerStep)),
        "the optimizer has taken its step"
    );
    let third = Action::Forward { unit: 0, micro: 2, keep: Keep::Graph };
    assert_eq!(reason(&|actions| actions[unshard + 1] = third), "the step has 2 micro-batches");
    let fourth = Action::Gather { unit: 3 };
    assert_eq!(reason(&|actions| actions[0] = fourth), "the model has 3 units");
    assert_eq!(reason(&|actions| _ = actions.remove(0)), "the unit was not gathered");
    let reduce = Action::ReduceGradients { unit: 0 };
    let at = position(reduce);
    assert_eq!(
        reason(&|actions| actions.insert(at, reduce)),
        "the unit has no gradient that is not reduced"
    );
    let wait = position(Action::AwaitGradients { unit: 0 });
    assert_eq!(
        reason(&|actions| _ = actions.remove(wait)),
        "the gradients of unit 0 are there of 0 of 2 micro-batches"
    );
    // Reduced between its two micro-batches, and not after the second.
    let second = position(Action::Backward { unit: 0, micro: 1 });
    let early = |actions: &mut Vec<Action>| {
        actions.remove(at);
        actions.insert(second, reduce);
    };
    assert_eq!(reason(&early), "the gradients of unit 0 are there of 1 of 2 micro-batches");
}
