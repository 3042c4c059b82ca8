//! Broken schedules and programs are caught, each with its place and reason.

use std::collections::HashSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn read(text: &str) -> Schedule {
    csv::parse(text).unwrap()
}

#[test]
fn of_steps() {
    let fault = |text: &str| read(text).lower().unwrap_err().to_string();
    assert_eq!(fault("0F0,0B0\n1B0,1F0"), "rank 1, position 0, 1B0: 1F0 must come before it");
    assert_eq!(fault("0F0,0W0,0I0"), "rank 0, position 1, 0W0: 0I0 must come before it");
    assert_eq!(
        fault("0F0,0F0,0B0"),
        "rank 0, position 1, 0F0: this was done at position 0 already"
    );
    assert_eq!(
        fault("0F0,0I0,0B0"),
        "rank 0, position 2, 0B0: the other way to run this backward stands at position 1: it is whole, or split, \
         not both"
    );
    assert_eq!(fault("0F0,0I0"), "rank 0, at its end, position 2: 0W0 is missing");
    assert_eq!(fault("0F0"), "rank 0, at its end, position 1: 0B0 is missing");
    assert_eq!(fault("0F1,0B1"), "rank 0, at its end, position 2: 0F0 is missing");
    let astray = |stage, micro| {
        let step = Step { kind: Kind::Forward, stage, micro };
        let steps = vec![vec![step], vec![]];
        Schedule::new(vec![1], 1, steps).unwrap().lower().unwrap_err().to_string()
    };
    assert_eq!(astray(0, 0), "rank 0, position 0, 0F0: the stage belongs to rank 1");
    assert_eq!(astray(1, 0), "rank 0, position 0, 1F0: there are only the stages 0 to 0");
    assert_eq!(astray(0, 1), "rank 0, position 0, 0F1: there are only the micro-batches 0 to 0");
}

#[test]
fn of_ranks_that_wait_for_each_other() {
    // Rank 0 wants gradients of micro-batch 1 first, and rank 1 works on micro-batch 0 first, whose forward comes
    // after that.
    let fault = read("0F1,0B1,0F0,0B0\n1F0,1F1,1B0,1B1").lower().unwrap_err();
    assert_eq!(
        fault.to_string(),
        "rank 0, position 1, 0B1: no rank can go on: rank 0 waits at position 1 (0B1) for rank 1; rank 1 waits at \
         position 0 (1F0) for rank 0"
    );
    assert!(csv::write(&read("0F1,0B1,0F0,0B0\n1F0,1F1,1B0,1B1")).is_err());
}

/// The messages of 1F1B on two ranks and two micro-batches.
fn lowered() -> Lowered {
    one_f_one_b(shape(2, 1, 2)).unwrap().lower().unwrap()
}

#[test]
fn of_messages() {
    let lowered = lowered();
    let printed = |rank: usize| -> Vec<String> {
        lowered.operations[rank].iter().map(Operation::to_string).collect()
    };
    assert_eq!(
        printed(0),
        [
            "0F0",
            "send the activation that stage 0 makes of micro-batch 0 to rank 1",
            "0F1",
            "send the activation that stage 0 makes of micro-batch 1 to rank 1",
            "receive the gradient that stage 1 makes of micro-batch 0 from rank 1",
            "0B0",
            "receive the gradient that stage 1 makes of micro-batch 1 from rank 1",
            "0B1",
        ]
    );
    let fault = |change: fn(&mut Lowered)| {
        let mut broken = lowered.clone();
        change(&mut broken);
        prove(&broken).unwrap_err().to_string()
    };
    let first =
        "rank 0, position 1, send the activation that stage 0 makes of micro-batch 0 to rank 1";
    assert_eq!(
        fault(|broken| {
            broken.operations[1].remove(0);
        }),
        "rank 1, position 0, 1F0: it needs the activation that stage 0 makes of micro-batch 0, which was not \
         received before"
    );
    assert_eq!(
        fault(|broken| {
            broken.operations[0].remove(1);
        }),
        "rank 1, position 0, receive the activation that stage 0 makes of micro-batch 0 from rank 0: rank 0 never \
         sends it"
    );
    assert_eq!(
        fault(|broken| broken.operations[0].swap(0, 1)),
        first.replace("position 1", "position 0")
            + ": it needs the activation that stage 0 makes of micro-batch 0, which was not made before"
    );
    assert_eq!(
        fault(|broken| {
            let Operation::Send { message, .. } = broken.operations[0][1] else { unreachable!() };
            broken.operations[0][1] = Operation::Send { message, to: 0 };
        }),
        first.replace("to rank 1", "to rank 0")
            + ": no such message goes this way: it is made and needed elsewhere, or on one rank"
    );
}

#[test]
fn of_messages_sent_again_or_to_oneself() {
    let mut broken = lowered();
    let send = broken.operations[0][1];
    broken.operations[0].push(send);
    let fault = prove(&broken).unwrap_err();
    assert_eq!((fault.rank, fault.position), (0, 8));
    assert_eq!(fault.reason, Reason::Again { first: 1 });

    let mut broken = zbv(shape(1, 2, 1)).unwrap().lower().unwrap();
    let message = Message { value: Value::Activation, stage: 0, micro: 0 };
    broken.operations[0].insert(1, Operation::Send { message, to: 0 });
    let fault = prove(&broken).unwrap_err();
    assert_eq!((fault.position, fault.reason), (1, Reason::Astray));
}

#[test]
fn of_messages_in_another_order() {
    // The receives change places where both are there before they are needed.
    let schedule = read("0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1");
    let mut lowered = schedule.lower().unwrap();
    let receive = lowered.operations[1].remove(2);
    lowered.operations[1].insert(0, receive);
    assert_eq!(
        prove(&lowered).unwrap_err().to_string(),
        "rank 1, position 0, receive the activation that stage 0 makes of micro-batch 1 from rank 0: rank 0 sends the \
         activation that stage 0 makes of micro-batch 0 at this point"
    );
    lowered.operations[1].swap(0, 1);
    prove(&lowered).unwrap();
}

#[test]
fn of_blocking_sends() {
    // Both ranks send first: fine if sends are buffered, and for ever if not.
    let schedule = read("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1");
    let mut lowered = schedule.lower().unwrap();
    let place = |lowered: &Lowered, rank: usize, wanted: fn(&Operation) -> bool| {
        lowered.operations[rank].iter().rposition(wanted).unwrap()
    };
    let receive = place(&lowered, 1, |o| matches!(o, Operation::Receive { .. }));
    let send =
        lowered.operations[1].iter().position(|o| matches!(o, Operation::Send { .. })).unwrap();
    assert!(receive < send, "{:?}", lowered.operations[1]);
    let moved = lowered.operations[1].remove(receive);
    lowered.operations[1].insert(send, moved);
    let fault = prove(&lowered).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "rank 0, position 3, send the activation that stage 0 makes of micro-batch 1 to rank 1: no rank can go on: \
         rank 0 waits at position 3 (send the activation that stage 0 makes of micro-batch 1 to rank 1) for rank 1; \
         rank 1 waits at position 3 (send the gradient that stage 1 makes of micro-batch 0 to rank 0) for rank 0"
    );
}

/// A schedule of any family, with its messages.
fn any_lowered() -> impl Strategy<Value = Lowered> {
    (prop::sample::select(Family::ALL.to_vec()), 2usize..6, 1usize..4, 1usize..10).prop_map(
        |(family, ranks, stages_per_rank, micro_batches)| {
            let stages_per_rank =
                family.stages_per_rank().map_or(stages_per_rank, |(needed, _)| needed);
            family.schedule(shape(ranks, stages_per_rank, micro_batches)).unwrap().lower().unwrap()
        },
    )
}

/// A rank that does something, and a place in its list.
fn pick(lowered: &Lowered, rank: Index, place: Index) -> (usize, usize) {
    let rank = rank.index(lowered.operations.len());
    (rank, place.index(lowered.operations[rank].len()))
}

/// Runs `lowered` without looking at it first: ranks hold values, and a message is handed over when both sides are
/// there. Whether all comes to its end with everything computed once.
fn runs(lowered: &Lowered) -> bool {
    let stages = lowered.owner.len();
    let mut at = vec![0; lowered.operations.len()];
    let mut held: Vec<HashSet<Message>> = vec![HashSet::new(); at.len()];
    let mut done = HashSet::new();
    loop {
        let before = at.clone();
        for rank in 0..at.len() {
            match lowered.operations[rank].get(at[rank]).copied() {
                Some(Operation::Compute(step)) => {
                    let needs = match step.kind {
                        Kind::Forward => None,
                        Kind::Backward | Kind::BackwardInput => Some(Kind::Forward),
                        Kind::BackwardWeight => Some(Kind::BackwardInput),
                    };
                    let own = needs.is_none_or(|kind| done.contains(&Step { kind, ..step }));
                    let input =
                        Message::needed_by(step, stages).is_none_or(|m| held[rank].contains(&m));
                    if !own || !input || !done.insert(step) {
                        return false;
                    }
                    held[rank].extend(Message::made_by(step, stages));
                    at[rank] += 1;
                }
                Some(Operation::Send { message, to }) => {
                    let other = lowered.operations[to].get(at[to]).copied();
                    if other == Some(Operation::Receive { message, from: rank }) {
                        if !held[rank].contains(&message) || !held[to].insert(message) {
                            return false;
                        }
                        at[rank] += 1;
                        at[to] += 1;
                    }
                }
                Some(Operation::Receive { .. }) | None => {}
            }
        }
        if at == before {
            return (0..at.len()).all(|rank| at[rank] == lowered.operations[rank].len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_can_be_left_out(lowered in any_lowered(), rank: Index, place: Index) {
        let mut broken = lowered;
        let (rank, place) = pick(&broken, rank, place);
        let gone = broken.operations[rank].remove(place);
        prop_assert!(prove(&broken).is_err(), "{} is not missed", gone);
    }

    #[test]
    fn nothing_can_be_done_twice(lowered in any_lowered(), rank: Index, place: Index, again: Index) {
        let mut broken = lowered;
        let (rank, place) = pick(&broken, rank, place);
        let operation = broken.operations[rank][place];
        let later = place + 1 + again.index(broken.operations[rank].len() - place);
        broken.operations[rank].insert(later, operation);
        prop_assert!(prove(&broken).is_err(), "{} is done twice", operation);
    }

    #[test]
    fn nothing_can_be_done_elsewhere(lowered in any_lowered(), rank: Index, place: Index, to: Index) {
        let mut broken = lowered;
        let (rank, place) = pick(&broken, rank, place);
        let moved = broken.operations[rank].remove(place);
        let other = (rank + 1 + to.index(broken.operations.len() - 1)) % broken.operations.len();
        broken.operations[other].insert(0, moved);
        prop_assert!(prove(&broken).is_err(), "{} is done by rank {}", moved, other);
    }

    #[test]
    fn no_step_can_change_places_with_one_that_it_needs(lowered in any_lowered(), rank: Index, place: Index) {
        let mut broken = lowered;
        let (rank, place) = pick(&broken, rank, place);
        let list = &mut broken.operations[rank];
        let Operation::Compute(step) = list[place] else { return Ok(()) };
        let stages = broken.owner.len();
        let needs = |operation: &Operation| match *operation {
            Operation::Compute(other) => {
                (other.stage, other.micro) == (step.stage, step.micro) && other.kind < step.kind
            }
            Operation::Receive { message, .. } => Message::needed_by(step, stages) == Some(message),
            Operation::Send { .. } => false,
        };
        let Some(before) = list.iter().position(needs) else { return Ok(()) };
        list.swap(before, place);
        prop_assert!(prove(&broken).is_err(), "{}", step);
    }

    #[test]
    fn messages_cannot_overtake(lowered in any_lowered(), rank: Index, first: Index) {
        let mut broken = lowered;
        let (rank, _) = pick(&broken, rank, first);
        let list = &mut broken.operations[rank];
        let ways = list.iter().enumerate().filter_map(|(place, operation)| match *operation {
            Operation::Compute(_) => None,
            Operation::Send { to, .. } => Some((place, to, true)),
            Operation::Receive { from, .. } => Some((place, from, false)),
        });
        let ways: Vec<_> = ways.collect();
        let (place, peer, sends) = ways[first.index(ways.len())];
        let same = ways.iter().find(|way| way.0 > place && (way.1, way.2) == (peer, sends));
        let Some((other, ..)) = same else { return Ok(()) };
        list.swap(place, *other);
        prop_assert!(prove(&broken).is_err(), "{}", broken.operations[rank][place]);
    }

    /// Some swaps do no harm: the proof and a run agree on all.
    #[test]
    fn what_is_proven_runs_and_the_other_way_round(
        lowered in any_lowered(), rank: Index, place: Index, distance in 1usize..4,
    ) {
        prop_assert!(runs(&lowered));
        let mut broken = lowered;
        let (rank, place) = pick(&broken, rank, place);
        let other = (place + distance) % broken.operations[rank].len();
        broken.operations[rank].swap(place, other);
        prop_assert_eq!(prove(&broken).is_ok(), runs(&broken), "{:?}", prove(&broken));
    }
}
