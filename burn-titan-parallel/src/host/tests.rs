//! Every collective against what it should give, between threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::placement::shard_range;

const COUNTS: [usize; 5] = [0, 1, 7, 10_007, (1 << 18) + 1];
const WORLDS: [usize; 5] = [1, 2, 3, 4, 7];

/// Runs `f` on every rank of a world of threads.
fn on_ranks<T: Send>(size: usize, f: impl Fn(Queue) -> T + Sync) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = LocalLinks::world(size)
            .into_iter()
            .map(|links| scope.spawn(move || f(queue(links, Duration::from_secs(20)))))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn queue(links: LocalLinks, timeout: Duration) -> Queue {
    let members = (0..links.world_size()).collect();
    Queue::new(Group::new(Arc::new(links), members, 1, timeout)).unwrap()
}

/// Repeatable bytes of whole elements; floats are finite.
fn data(rank: usize, count: usize, element: Element) -> Vec<u8> {
    (0..count)
        .flat_map(|i| {
            let x = ((i * 31 + rank * 1009) as f32 * 0.37).sin() * 100.0;
            match element {
                Element::F32 => x.to_ne_bytes().to_vec(),
                Element::F16 => half::f16::from_f32(x).to_ne_bytes().to_vec(),
                Element::BF16 => half::bf16::from_f32(x).to_ne_bytes().to_vec(),
                Element::I32 => (x as i32).to_ne_bytes().to_vec(),
                Element::U8 => vec![x as i32 as u8],
            }
        })
        .collect()
}

fn lengths(count: usize, size: usize) -> Vec<usize> {
    (0..size).map(|rank| shard_range(count, size, rank).len()).collect()
}

#[test]
fn reductions_equal_the_sum_in_rank_order() {
    for (size, count) in WORLDS.iter().flat_map(|s| COUNTS.iter().map(move |c| (*s, *c))) {
        for element in Element::ALL {
            for reduction in Reduction::ALL {
                let inputs: Vec<Vec<u8>> = (0..size).map(|r| data(r, count, element)).collect();
                let views: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
                let mut want = vec![0; count * element.size()];
                element::reduce(element, reduction, &views, &mut want);
                let lengths = lengths(count, size);
                let got = on_ranks(size, |queue| {
                    let input = || data(queue.rank(), count, element);
                    // Both are under way at once.
                    let all = queue.all_reduce(input(), element, reduction);
                    let shard = queue.reduce_scatter(input(), &lengths, element, reduction);
                    (all.wait().unwrap(), shard.wait().unwrap())
                });
                let shards: Vec<u8> = got.iter().flat_map(|(_, shard)| shard.clone()).collect();
                assert!(got.iter().all(|(all, _)| *all == want), "{size} {count} {element}");
                assert!(shards == want, "{size} {count} {element} {reduction}");
            }
        }
    }
}

#[test]
fn what_is_gathered_sent_and_broadcast_arrives() {
    for (size, count) in WORLDS.iter().flat_map(|s| COUNTS.iter().map(move |c| (*s, *c))) {
        let element = Element::BF16;
        let lengths = lengths(count, size);
        let whole = data(99, count, element);
        let got = on_ranks(size, |queue| {
            let rank = queue.rank();
            let range = shard_range(count, size, rank);
            let shard = whole[range.start * 2..range.end * 2].to_vec();
            let all = queue.all_gather(shard, &lengths, element).wait().unwrap();
            // Rank r sends r + s + 1 elements to rank s.
            let send: Vec<usize> = (0..size).map(|to| rank + to + 1).collect();
            let out = data(rank, send.iter().sum(), element);
            let swapped = queue.all_to_all(out, &send, &send, element).wait().unwrap();
            queue.barrier().wait().unwrap();
            let root = size / 2;
            let own = if rank == root { whole.clone() } else { Vec::new() };
            let sent = queue.broadcast(own, count, element, root).wait().unwrap();
            (all, swapped, sent)
        });
        for (rank, (all, swapped, sent)) in got.into_iter().enumerate() {
            assert!(all == whole && sent == whole, "{size} {count}");
            let want: Vec<u8> = (0..size)
                .flat_map(|from| {
                    let start: usize = (0..rank).map(|to| from + to + 1).sum();
                    let theirs = data(from, 100, element);
                    theirs[start * 2..(start + from + rank + 1) * 2].to_vec()
                })
                .collect();
            assert_eq!(swapped, want);
        }
    }
}

#[test]
fn ranks_that_disagree_are_told_so() {
    let errors = on_ranks(3, |queue| {
        let x = data(0, 10, Element::F32);
        if queue.rank() == 2 {
            queue.all_gather(x, &[10, 10, 10], Element::F32).wait().unwrap_err().to_string()
        } else {
            queue.all_reduce(x, Element::F32, Reduction::Sum).wait().unwrap_err().to_string()
        }
    });
    let told = |error: &&String| {
        error.contains("all_gather of 30 x f32") && error.contains("all_reduce (sum) of 10 x f32")
    };
    let first = errors.iter().find(told).unwrap_or_else(|| panic!("{errors:?}"));
    assert!(
        first.contains("rank 2 on this process") || first.contains("but rank 2 makes"),
        "{first}"
    );
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
                    let queue = queue(links, Duration::from_millis(300));
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

#[test]
fn many_operations_are_in_flight() {
    on_ranks(4, |queue| {
        let pending: Vec<_> = (0..200)
            .map(|i| queue.all_reduce(data(i, 100, Element::I32), Element::I32, Reduction::Max))
            .collect();
        for (i, pending) in pending.into_iter().enumerate() {
            assert_eq!(pending.wait().unwrap(), data(i, 100, Element::I32));
        }
    });
}
