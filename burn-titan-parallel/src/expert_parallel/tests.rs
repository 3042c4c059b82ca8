//! Rows go to their experts and come back, and so do their gradients.

use std::time::Duration;

use super::*;
use crate::world::World;

const DIM: usize = 3;

/// A number for each row of a rank, by which it is known.
fn mark(rank: usize, expert: usize, row: usize) -> f32 {
    (rank * 10_000 + expert * 100 + row) as f32
}

fn rows(values: &[f32], device: &Device) -> Tensor<2> {
    let wide: Vec<f32> = values.iter().flat_map(|value| [*value, value * 0.5, -value]).collect();
    shaped(Tensor::<1>::from_floats(wide.as_slice(), device), [values.len(), DIM])
}

/// `counts[rank]` are the rows of a rank for each expert.
fn exchanged(counts: &[Vec<usize>]) {
    let ranks = counts.len();
    let each = counts[0].len() / ranks;
    let rank = |world: World| {
        let device = Device::flex();
        let me = world.rank();
        let all: Vec<usize> = (0..ranks).collect();
        let expert = ExpertParallel::new(Peers::new(world.communicator("ep", &all).unwrap()));
        let own: Vec<f32> = (0..counts[me].len())
            .flat_map(|expert| (0..counts[me][expert]).map(move |row| mark(me, expert, row)))
            .collect();
        let x = rows(&own, &device).autodiff().require_grad();
        let arrival = expert.arrival(&counts[me], &device);
        let (came, ()) = expert.dispatch(x.clone(), &arrival, || ());
        // The rows of each of its experts, rank after rank.
        let mine = me * each..(me + 1) * each;
        let expected: Vec<f32> = mine
            .clone()
            .flat_map(|expert| {
                (0..ranks).flat_map(move |from| {
                    (0..counts[from][expert]).map(move |row| mark(from, expert, row))
                })
            })
            .collect();
        assert_eq!(arrival.counts().iter().sum::<usize>(), expected.len());
        for (expert, count) in mine.zip(arrival.counts()) {
            assert_eq!(*count, counts.iter().map(|counts| counts[expert]).sum::<usize>());
        }
        came.clone().inner().into_data().assert_eq(&rows(&expected, &device).into_data(), true);
        // What comes back is what was made of the row: three times it, in its place.
        let back = expert.combine(came * 3.0, &arrival);
        (back.clone().inner() / 3.0).into_data().assert_eq(&x.clone().inner().into_data(), true);
        let weights = rows(&own, &device).autodiff();
        let gradients = (back * weights).sum().backward();
        let gradient = x.grad(&gradients).expect("rows have a gradient");
        (gradient / 3.0).into_data().assert_eq(&rows(&own, &device).into_data(), true);
        expert.peers().check().unwrap();
    };
    let rank = &rank;
    std::thread::scope(|scope| {
        let worlds = World::local(ranks, Duration::from_secs(60)).into_iter();
        let ranks: Vec<_> = worlds.map(|world| scope.spawn(move || rank(world))).collect();
        ranks.into_iter().for_each(|rank| rank.join().expect("no rank panics"));
    });
}

#[test]
fn rows_go_to_their_experts_and_back() {
    exchanged(&[vec![2, 0, 3, 1], vec![1, 1, 0, 5]]);
    // An expert that gets nothing, one that gets all of a rank's, and three ranks.
    exchanged(&[vec![0, 7, 0, 0, 0, 0], vec![1, 2, 0, 4, 5, 6], vec![3, 0, 0, 2, 0, 1]]);
}

#[test]
fn a_rank_to_which_nothing_comes() {
    exchanged(&[vec![3, 1, 0, 0], vec![2, 2, 0, 0]]);
}

#[test]
fn one_rank_has_all_experts() {
    exchanged(&[vec![3, 0, 2]]);
}

/// The other rank sends nothing before the first has done something else: it would wait for ever, if it waited first.
#[test]
fn something_else_is_done_while_rows_travel() {
    let (done, awaited) = std::sync::mpsc::channel::<()>();
    let rank = |world: World, other: Box<dyn FnOnce() -> usize + Send>| {
        let (device, me) = (Device::flex(), world.rank());
        let expert = ExpertParallel::new(Peers::new(world.communicator("ep", &[0, 1]).unwrap()));
        let arrival = expert.arrival(&[1, 1], &device);
        let own = rows(&[mark(me, 0, 0), mark(me, 1, 0)], &device);
        let (came, other) = match me {
            0 => expert.dispatch(own, &arrival, other),
            _ => {
                let other = other();
                (expert.dispatch(own, &arrival, || ()).0, other)
            }
        };
        assert_eq!(other, me);
        expert.peers().check().unwrap();
        let expected = rows(&[mark(0, me, 0), mark(1, me, 0)], &device);
        came.into_data().assert_eq(&expected.into_data(), true);
    };
    let rank = &rank;
    let first = move || done.send(()).map_or(9, |()| 0);
    let second = move || awaited.recv().map_or(9, |()| 1);
    let others: [Box<dyn FnOnce() -> usize + Send>; 2] = [Box::new(first), Box::new(second)];
    std::thread::scope(|scope| {
        let worlds = World::local(2, Duration::from_secs(20)).into_iter().zip(others);
        let ranks: Vec<_> =
            worlds.map(|(world, other)| scope.spawn(move || rank(world, other))).collect();
        ranks.into_iter().for_each(|rank| rank.join().expect("no rank panics"));
    });
}
