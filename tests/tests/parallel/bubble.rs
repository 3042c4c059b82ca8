//! The programs of a pipeline in simulated time: ranks are threads that compute nothing, but keep clocks, and send them
//! to each other by the messages of their programs. How long they wait is held against the schedule's bubble.

use std::time::Duration;

use burn::tensor::{Device, Tensor};
use burn_titan_parallel::pipeline::{Costs, Family, Shape, StageCosts, TimeLine, simulate};
use burn_titan_parallel::step::{Pipeline, Strategy, pipelined, time_line};
use burn_titan_parallel::{Action, Program, World};

const FAMILIES: [Family; 7] = [
    Family::GPipe,
    Family::OneForwardOneBackward,
    Family::Interleaved,
    Family::LoopedBreadthFirst,
    Family::ZeroBubble,
    Family::ZeroBubbleV,
    Family::DualPipeV,
];

/// Units of a stage, each of which takes as long.
const UNITS: usize = 3;

fn pipeline(family: Family, ranks: usize, micro_batches: usize) -> Pipeline {
    let several = matches!(family, Family::Interleaved | Family::LoopedBreadthFirst);
    let stages_per_rank =
        family.stages_per_rank().map_or(1 + usize::from(several), |(each, _)| each);
    let schedule =
        family.schedule(Shape { ranks, stages_per_rank, micro_batches }).expect("counts");
    let stages = (0..schedule.stages()).map(|stage| stage * UNITS..(stage + 1) * UNITS).collect();
    let lowered = schedule.lower().expect("a schedule that is right");
    Pipeline { stages, schedule, lowered, ties: vec![] }
}

/// The time that an action takes if a stage's forward, and each half of its backward, takes 1.
fn cost(action: &Action) -> f64 {
    match action {
        Action::Forward { .. } | Action::BackwardInput { .. } | Action::BackwardWeight { .. } => {
            1.0 / UNITS as f64
        }
        Action::Backward { .. } => 2.0 / UNITS as f64,
        _ => 0.0,
    }
}

/// Runs a rank's program, and gives when each action began and ended by its clock.
fn run(world: &World, pipeline: &Pipeline, program: &Program) -> Vec<[f64; 2]> {
    let device = Device::flex();
    let all: Vec<usize> = (0..world.size()).collect();
    let peers = world.communicator("pp", &all).expect("a group");
    let clock = |now: f64| Tensor::<1>::from_floats([now as f32], &device);
    let (mut now, mut sending) = (0.0_f64, Vec::new());
    let mut step = |action: &Action| {
        let start = now;
        match *action {
            Action::SendActivation { unit, .. } => {
                sending.push(peers.send(clock(now).into(), pipeline.owner(unit + 1)));
            }
            Action::SendGradient { unit, .. } => {
                sending.push(peers.send(clock(now).into(), pipeline.owner(unit)));
            }
            Action::ReceiveActivation { unit, .. } => {
                let sent = peers.receive(clock(0.0).into(), pipeline.owner(unit));
                let sent: Tensor<1> = sent.wait().expect("a message").float();
                now = now.max(f64::from(sent.into_scalar::<f32>()));
            }
            Action::ReceiveGradient { unit, .. } => {
                let sent = peers.receive(clock(0.0).into(), pipeline.owner(unit + 1));
                let sent: Tensor<1> = sent.wait().expect("a message").float();
                now = now.max(f64::from(sent.into_scalar::<f32>()));
            }
            _ => now += cost(action),
        }
        [start, now]
    };
    let times = program.actions.iter().map(&mut step).collect();
    sending.into_iter().for_each(|sent| sent.wait().expect("a message goes"));
    times
}

fn measured(pipeline: &Pipeline, micro_batches: usize) -> TimeLine {
    let strategy = Strategy { micro_batches, ..Strategy::default() };
    let ranks = pipeline.schedule.ranks();
    let done: Vec<_> = std::thread::scope(|scope| {
        let worlds = World::local(ranks, Duration::from_secs(120)).into_iter();
        let rank = |world: World| {
            scope.spawn(move || {
                let program = pipelined(pipeline, world.rank(), &strategy);
                let times = run(&world, pipeline, &program);
                (program, times)
            })
        };
        let ranks: Vec<_> = worlds.map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    });
    time_line(pipeline, &done)
}

#[test]
fn ranks_wait_as_long_as_the_schedule_says() {
    for family in FAMILIES {
        for (ranks, micro_batches) in [(2, 3), (2, 8), (4, 4), (4, 13), (8, 16)] {
            let pipeline = pipeline(family, ranks, micro_batches);
            let costs = vec![StageCosts::UNIT; pipeline.stages.len()];
            let costs = Costs::new(costs, 0.0).expect("costs");
            let said = simulate(&pipeline.schedule, &costs).expect("a time line");
            let found = measured(&pipeline, micro_batches);
            for rank in 0..ranks {
                let (said_idle, idle) = (said.idle(rank), found.idle(rank));
                let name =
                    format!("{}, {ranks} ranks, {micro_batches} micro-batches", family.name());
                let steps = pipeline.schedule.steps()[rank].len();
                assert_eq!(found.ranks[rank].len(), steps, "{name}: steps of rank {rank}");
                assert!(
                    (idle - said_idle).abs() <= 0.05 * said_idle + 1e-4,
                    "{name}: rank {rank} waits {idle}, the schedule says {said_idle}"
                );
            }
            assert_eq!(found.transfers.len(), said.transfers.len());
        }
    }
}
