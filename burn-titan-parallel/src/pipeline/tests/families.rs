//! Every schedule at 2 to 16 ranks, 1 to 4 stages a rank and 1 to 64 micro-batches: it is proven or refused, and has
//! the bubble and the activations of its paper.

use super::*;

/// The parts of a schedule, which one test each takes: the idle time of every rank and the activations of each,
/// where they are known.
struct Expected {
    idle: Option<f64>,
    activations: Option<fn(Shape, usize) -> usize>,
}

/// Proves all combinations, and compares those that `expected` knows, at costs that it gives. Returns how many were
/// compared.
fn sweep(family: Family, costs: StageCosts, expected: impl Fn(Shape) -> Expected) -> usize {
    let mut compared = 0;
    for ranks in 1..=16 {
        for stages_per_rank in 1..=4 {
            for micro_batches in 1..=64 {
                let shape = shape(ranks, stages_per_rank, micro_batches);
                let schedule = match family.schedule(shape) {
                    Ok(schedule) => schedule,
                    Err(ScheduleError::StagesPerRank { needed, .. }) => {
                        assert_ne!(needed, stages_per_rank, "{family} {shape:?}");
                        continue;
                    }
                    Err(error) => panic!("{family} {shape:?}: {error}"),
                };
                schedule.lower().unwrap_or_else(|fault| panic!("{family} {shape:?}: {fault}"));
                compared += usize::from(compare(&schedule, shape, costs, expected(shape)));
            }
        }
    }
    compared
}

fn compare(schedule: &Schedule, shape: Shape, costs: StageCosts, expected: Expected) -> bool {
    if let Some(idle) = expected.idle {
        let line = line(schedule, costs);
        for rank in 0..shape.ranks {
            assert_eq!(line.idle(rank), idle, "{shape:?}, rank {rank}\n{schedule}");
        }
    }
    if let Some(activations) = expected.activations {
        let all: Vec<usize> = (0..shape.ranks).map(|rank| activations(shape, rank)).collect();
        assert_eq!(peaks(schedule).ranks, all, "{shape:?}\n{schedule}");
    }
    expected.idle.is_some() && expected.activations.is_some()
}

/// (p - 1)`each`, which is the bubble of most schedules.
fn ramp(shape: Shape, each: f64) -> f64 {
    (shape.ranks - 1) as f64 * each
}

#[test]
fn gpipe_fills_and_drains_once_and_keeps_everything() {
    let compared = sweep(Family::GPipe, costs(3.0, 4.0, 3.0), |shape| Expected {
        idle: Some(ramp(shape, 10.0)),
        activations: Some(|shape, _| shape.micro_batches),
    });
    assert_eq!(compared, 16 * 64);
}

#[test]
fn one_forward_one_backward_keeps_one_micro_batch_for_each_rank_from_here() {
    let compared = sweep(Family::OneForwardOneBackward, costs(3.0, 4.0, 3.0), |shape| Expected {
        idle: Some(ramp(shape, 10.0)),
        activations: Some(|shape, rank| (shape.ranks - rank).min(shape.micro_batches)),
    });
    assert_eq!(compared, 16 * 64);
}

/// Forwards before the first backward of an interleaved schedule, and that one's.
fn ahead(shape: Shape, rank: usize) -> usize {
    let Shape { ranks, stages_per_rank, micro_batches } = shape;
    if stages_per_rank == 1 {
        return ranks - rank;
    }
    let group = micro_batches.div_ceil((micro_batches / ranks).max(1));
    (stages_per_rank - 1) * group + 2 * (ranks - rank) - 1
}

#[test]
fn interleaved_has_the_bubble_of_one_stage_from_as_many_micro_batches_as_ranks_on() {
    let compared = sweep(Family::Interleaved, costs(3.0, 4.0, 3.0), |shape| Expected {
        idle: (shape.micro_batches >= shape.ranks).then(|| ramp(shape, 10.0)),
        activations: Some(|shape, rank| {
            ahead(shape, rank).min(shape.stages_per_rank * shape.micro_batches)
        }),
    });
    assert_eq!(compared, 4 * (1..=16).map(|ranks| 65 - ranks).sum::<usize>());
}

#[test]
fn looped_breadth_first_has_the_bubble_of_one_stage_and_keeps_everything() {
    let compared = sweep(Family::LoopedBreadthFirst, costs(3.0, 4.0, 3.0), |shape| Expected {
        idle: (shape.micro_batches >= shape.ranks).then(|| ramp(shape, 10.0)),
        activations: Some(|shape, _| shape.stages_per_rank * shape.micro_batches),
    });
    assert_eq!(compared, 4 * (1..=16).map(|ranks| 65 - ranks).sum::<usize>());
}

#[test]
fn zero_bubble_has_less_bubble_and_with_one_stage_the_memory_of_1f1b() {
    let compared = sweep(Family::ZeroBubble, costs(5.0, 4.0, 3.0), |shape| Expected {
        idle: (shape.micro_batches >= shape.ranks).then(|| ramp(shape, 6.0)),
        activations: (shape.stages_per_rank == 1)
            .then_some(|shape, _| shape.ranks.min(shape.micro_batches)),
    });
    assert_eq!(compared, (1..=16).map(|ranks| 65 - ranks).sum::<usize>());
}

#[test]
fn zero_bubble_with_several_stages_keeps_one_more_for_each_rank_before() {
    sweep(Family::ZeroBubble, costs(1.0, 1.0, 1.0), |shape| Expected {
        idle: (shape.micro_batches >= shape.ranks).then(|| ramp(shape, 1.0)),
        activations: (shape.stages_per_rank > 1 && shape.micro_batches >= 2 * shape.ranks)
            .then_some(|shape, rank| ahead(shape, rank) + rank),
    });
}

#[test]
fn zbv_waits_at_its_ends_only_and_keeps_one_pair_of_stages_for_each_rank() {
    let full = |shape: Shape| shape.micro_batches + 1 >= 2 * shape.ranks;
    let compared = sweep(Family::ZeroBubbleV, costs(1.0, 1.0, 1.0), |shape| Expected {
        idle: full(shape).then(|| ramp(shape, 1.0)),
        activations: full(shape).then_some(|shape, _| 2 * shape.ranks),
    });
    assert_eq!(compared, (1..=16).map(|ranks| 66 - 2 * ranks).sum::<usize>());
    for (ranks, micro_batches) in [(2, 3), (4, 7), (4, 64), (16, 31)] {
        let schedule = zbv(shape(ranks, 2, micro_batches)).unwrap();
        let line = line(&schedule, costs(1.0, 1.0, 1.0));
        assert!((0..ranks).all(|rank| line.stalled(rank) == 0.0), "{ranks} {micro_batches}");
        assert_eq!(line.ranks[ranks - 1][0].start, (ranks - 1) as f64);
    }
}

#[test]
fn dual_pipe_v_keeps_one_stage_more() {
    let full = |shape: Shape| shape.micro_batches >= 2 * shape.ranks;
    let compared = sweep(Family::DualPipeV, costs(1.0, 1.0, 1.0), |shape| Expected {
        idle: full(shape).then(|| ramp(shape, 1.0)),
        activations: full(shape).then_some(|shape, _| 2 * shape.ranks + 1),
    });
    assert_eq!(compared, (1..=16).map(|ranks| 65 - 2 * ranks).sum::<usize>());
}

/// The bubble of `github.com/deepseek-ai/DualPipe` takes a forward beside a backward as one step, whose results are
/// there at its end. With PP = 2p stages it is (PP/2 - 1)(F&B + B - 3W).
#[test]
fn dual_pipe_v_with_forwards_beside_backwards_has_the_bubble_of_its_table() {
    for ranks in 1..=8 {
        for micro_batches in [2 * ranks, 2 * ranks + 1, 40] {
            let schedule = dual_pipe_v(shape(ranks, 2, micro_batches)).unwrap();
            let makespan = makespan_of_pairs(&schedule);
            let busy = (micro_batches * 2 * 3) as f64;
            let (both, backward, weight) = (3.0, 2.0, 1.0);
            let bubble = (ranks - 1) as f64 * (both + backward - 3.0 * weight);
            assert_eq!(makespan - busy, bubble, "{ranks} ranks, {micro_batches} micro-batches");
        }
    }
}

/// The makespan at F = I = W = 1, where a forward right before a whole backward is one step with it. The first such
/// pair of the last rank is not: its backward's input is what the forward before it made.
fn makespan_of_pairs(schedule: &Schedule) -> f64 {
    let stages = schedule.stages();
    let groups: Vec<Vec<Vec<Step>>> = (0..schedule.ranks())
        .map(|rank| {
            let mut groups: Vec<Vec<Step>> = Vec::new();
            let mut apart = usize::from(rank + 1 == schedule.ranks());
            for step in &schedule.steps()[rank] {
                let pair = step.kind == Kind::Backward
                    && groups.last().is_some_and(|g| g.len() == 1 && g[0].kind == Kind::Forward);
                if pair && apart == 0 {
                    groups.last_mut().unwrap().push(*step);
                } else {
                    apart -= usize::from(pair);
                    groups.push(vec![*step]);
                }
            }
            groups
        })
        .collect();
    let mut made = std::collections::HashMap::new();
    let mut at = vec![0; schedule.ranks()];
    let mut now = vec![0.0f64; schedule.ranks()];
    while (0..at.len()).any(|rank| at[rank] < groups[rank].len()) {
        let before = at.clone();
        for rank in 0..at.len() {
            let Some(group) = groups[rank].get(at[rank]) else { continue };
            let needs = group.iter().filter_map(|step| Message::needed_by(*step, stages));
            let ready: Option<Vec<f64>> =
                needs.map(|message| made.get(&message).copied()).collect();
            let Some(ready) = ready else { continue };
            let start = ready.into_iter().fold(now[rank], f64::max);
            now[rank] =
                start + group.iter().map(|step| StageCosts::UNIT.of(step.kind)).sum::<f64>();
            let values = group.iter().filter_map(|step| Message::made_by(*step, stages));
            made.extend(values.map(|message| (message, now[rank])));
            at[rank] += 1;
        }
        assert_ne!(at, before, "the pairs wait for each other");
    }
    now.into_iter().fold(0.0, f64::max)
}

#[test]
fn stages_whose_backward_cannot_be_split() {
    for family in [Family::ZeroBubble, Family::ZeroBubbleV, Family::DualPipeV] {
        let schedule = family.schedule(shape(4, 2, 9)).unwrap();
        let some = schedule.clone().with_whole_backwards(|stage| stage == 0 || stage == 7);
        some.lower().unwrap();
        let split = |schedule: &Schedule, stage| {
            let mut steps = schedule.steps().iter().flatten();
            steps.any(|step| step.stage == stage && step.kind == Kind::BackwardWeight)
        };
        assert!(split(&schedule, 0) && split(&some, 1));
        assert!(!split(&some, 0) && !split(&some, 7));
    }
}

#[test]
fn names() {
    for family in Family::ALL {
        assert_eq!(family.name().parse::<Family>(), Ok(family));
    }
    let error = "1f2b".parse::<Family>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "no schedule is named \"1f2b\"; there are gpipe, 1f1b, interleaved_1f1b, looped_bfs, zb1p, zbv, dualpipev"
    );
}

#[test]
fn refusals() {
    let refused = |family: Family, shape| family.schedule(shape).unwrap_err().to_string();
    assert_eq!(
        refused(Family::ZeroBubbleV, shape(4, 3, 8)),
        "zbv takes 2 stages per rank, 4 ranks x 2 = 8 stages, and got 3 per rank: change the number of stages, or \
         choose zb1p"
    );
    assert_eq!(
        refused(Family::GPipe, shape(4, 1, 0)),
        "a pipeline of 0 micro-batches: give at least 1"
    );
    assert_eq!(
        refused(Family::Interleaved, shape(usize::MAX, 2, 8)),
        format!(
            "{} ranks x 2 stages x 8 micro-batches are more than 16777216 forwards: choose fewer",
            usize::MAX
        )
    );
    assert_eq!(
        Schedule::new(vec![0, 2], 1, vec![vec![], vec![]]).unwrap_err().to_string(),
        "stage 1 belongs to rank 2, and there are 2 ranks"
    );
}
