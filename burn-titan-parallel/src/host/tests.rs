//! Every collective against what it should give, over any links; and between threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::placement::shard_range;

const COUNTS: [usize; 5] = [0, 1, 7, 10_007, (1 << 18) + 1];
const WORLDS: [usize; 5] = [1, 2, 3, 4, 7];

/// Makes a world of so many ranks.
pub type World = fn(usize) -> Vec<Arc<dyn Links>>;

fn threads(size: usize) -> Vec<Arc<dyn Links>> {
    LocalLinks::world(size).into_iter().map(|links| Arc::new(links) as Arc<dyn Links>).collect()
}

/// Runs `f` on every rank of a world.
pub fn on_ranks<T: Send>(world: Vec<Arc<dyn Links>>, f: impl Fn(Queue) -> T + Sync) -> Vec<T> {
    on_failing_ranks(world, |queue, links| {
        let result = f(queue);
        links.close().unwrap();
        result
    })
}

/// The same, where ranks may fail.
pub fn on_failing_ranks<T: Send>(
    world: Vec<Arc<dyn Links>>,
    f: impl Fn(Queue, Arc<dyn Links>) -> T + Sync,
) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = world
            .into_iter()
            .map(|links| {
                scope.spawn(move || f(queue(links.clone(), Duration::from_secs(20)), links))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

pub fn queue(links: Arc<dyn Links>, timeout: Duration) -> Queue {
    let members = (0..links.world_size()).collect();
    Queue::new(Group::new(links, members, 1, timeout)).unwrap()
}

/// Repeatable bytes of whole elements; floats are finite.
pub fn data(rank: usize, count: usize, element: Element) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * element.size());
    for i in 0..count {
        let x = ((i * 31 + rank * 1009) as f32 * 0.37).sin() * 100.0;
        match element {
            Element::F32 => bytes.extend(x.to_ne_bytes()),
            Element::F16 => bytes.extend(half::f16::from_f32(x).to_ne_bytes()),
            Element::BF16 => bytes.extend(half::bf16::from_f32(x).to_ne_bytes()),
            Element::I32 => bytes.extend((x as i32).to_ne_bytes()),
            Element::U8 => bytes.push(x as i32 as u8),
        }
    }
    bytes
}

fn lengths(count: usize, size: usize) -> Vec<usize> {
    (0..size).map(|rank| shard_range(count, size, rank).len()).collect()
}

/// Reductions, to the bit, for every element, size and world.
pub fn check_reductions(world: World) {
    for size in WORLDS {
        let ranks = world(size);
        let cases: Vec<(usize, Element, Vec<Vec<u8>>)> = COUNTS
            .iter()
            .flat_map(|count| Element::ALL.map(|element| (*count, element)))
            .map(|(count, element)| {
                (count, element, (0..size).map(|rank| data(rank, count, element)).collect())
            })
            .collect();
        on_ranks(ranks, |queue| {
            for (count, element, inputs) in &cases {
                for reduction in Reduction::ALL {
                    check_reduction(&queue, *count, *element, reduction, inputs);
                }
            }
        });
    }
}

fn check_reduction(
    queue: &Queue,
    count: usize,
    element: Element,
    reduction: Reduction,
    inputs: &[Vec<u8>],
) {
    let (rank, size) = (queue.rank(), queue.size());
    // Both are under way at once.
    let all = queue.all_reduce(inputs[rank].clone(), element, reduction);
    let lengths = lengths(count, size);
    let shard = queue.reduce_scatter(inputs[rank].clone(), &lengths, element, reduction);
    let views: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut want = inputs[0].clone();
    element::reduce(element, reduction, &views[1..], 0, &mut want);
    let range = shard_range(count, size, rank);
    let bytes = range.start * element.size()..range.end * element.size();
    let case = format!("{size} {count} {element} {reduction}");
    assert!(all.wait().unwrap() == want, "{case}");
    assert!(shard.wait().unwrap() == want[bytes], "{case}");
}

/// What is gathered, exchanged and broadcast, for every element, size and world.
pub fn check_exchanges(world: World) {
    for size in WORLDS {
        on_ranks(world(size), |queue| {
            for (count, element) in
                COUNTS.iter().flat_map(|count| Element::ALL.map(|element| (*count, element)))
            {
                check_exchange(&queue, count, element);
            }
        });
    }
}

fn check_exchange(queue: &Queue, count: usize, element: Element) {
    let (rank, size, bytes) = (queue.rank(), queue.size(), element.size());
    let whole = data(99, count, element);
    let range = shard_range(count, size, rank);
    let shard = whole[range.start * bytes..range.end * bytes].to_vec();
    let all = queue.all_gather(shard, &lengths(count, size), element);
    // Rank r sends r + s + 1 elements to rank s.
    let send: Vec<usize> = (0..size).map(|to| rank + to + 1).collect();
    let out = data(rank, send.iter().sum(), element);
    let swapped = queue.all_to_all(out, &send, &send, element);
    let barrier = queue.barrier();
    let root = size / 2;
    let own = if rank == root { whole.clone() } else { Vec::new() };
    let sent = queue.broadcast(own, count, element, root);

    assert!(all.wait().unwrap() == whole, "{size} {count} {element}");
    let want: Vec<u8> = (0..size)
        .flat_map(|from| {
            let start: usize = (0..rank).map(|to| from + to + 1).sum();
            let theirs = data(from, 100, element);
            theirs[start * bytes..(start + from + rank + 1) * bytes].to_vec()
        })
        .collect();
    assert_eq!(swapped.wait().unwrap(), want);
    barrier.wait().unwrap();
    assert!(sent.wait().unwrap() == whole, "{size} {count} {element}");
}

/// A rank that makes another call than the others.
pub fn check_disagreement(world: World) {
    let errors = on_failing_ranks(world(3), |queue, _| {
        let x = data(0, 10, Element::F32);
        if queue.rank() == 2 {
            queue.all_gather(x, &[10, 10, 10], Element::F32).wait().unwrap_err().to_string()
        } else {
            queue.all_reduce(x, Element::F32, Reduction::Sum).wait().unwrap_err().to_string()
        }
    });
    let told = |error: &&String| {
        error.contains("all_gather of 30 x f32")
            && error.contains("all_reduce (sum) of 10 x f32")
            && error.contains("rank 2")
    };
    assert!(errors.iter().any(|error| told(&error)), "{errors:?}");
}

/// Many operations at once, of sizes that take different ways.
pub fn check_many_in_flight(world: World) {
    on_ranks(world(4), |queue| {
        let count = |i: usize| if i.is_multiple_of(10) { 100_000 } else { 100 };
        let pending: Vec<_> = (0..200)
            .map(|i| {
                queue.all_reduce(data(i, count(i), Element::I32), Element::I32, Reduction::Max)
            })
            .collect();
        for (i, pending) in pending.into_iter().enumerate() {
            assert!(pending.wait().unwrap() == data(i, count(i), Element::I32));
        }
    });
}

#[test]
fn reductions_equal_the_sum_in_rank_order() {
    check_reductions(threads);
}

#[test]
fn what_is_gathered_sent_and_broadcast_arrives() {
    check_exchanges(threads);
}

#[test]
fn ranks_that_disagree_are_told_so() {
    check_disagreement(threads);
}

#[test]
fn many_operations_are_in_flight() {
    check_many_in_flight(threads);
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let start = Instant::now();
    let errors: Vec<String> = std::thread::scope(|scope| {
        let mut world = LocalLinks::world(3);
        let absent = world.pop();
        let ranks: Vec<_> = world
            .into_iter()
            .map(|links| {
                scope.spawn(move || {
                    let queue = queue(Arc::new(links), Duration::from_millis(300));
                    queue.barrier().wait().unwrap_err().to_string()
                })
            })
            .collect();
        let errors = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        drop(absent);
        errors
    });
    assert!(start.elapsed() < Duration::from_secs(3));
    let named = errors.iter().any(|error| {
        error == "rank 2 on this process did not answer within 0.3 s in operation 1: barrier"
    });
    assert!(named, "{errors:?}");
}
