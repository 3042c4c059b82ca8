//! What the operations of [`super::Group`] send and hold, counted without running them.

use super::call::Kind;
use super::element::Element;
use super::group::{AHEAD, SMALL};
use super::segments::SEGMENT;
use crate::placement::shard_range;

/// Bytes of payload that a rank of a group sends in an operation on `count` elements, of which `own` are its shard. In
/// an all-to-all, `count` is what all ranks have together, and each sends as much to every other; of a message, `own`
/// is what the rank sends of it: all, or nothing.
pub fn bytes_sent(kind: Kind, ranks: usize, count: usize, own: usize, element: Element) -> u64 {
    let (size, others) = (element.size() as u64, ranks.saturating_sub(1) as u64);
    let bytes = |elements: usize| elements as u64 * size;
    match kind {
        Kind::AllGather => others * bytes(own),
        Kind::ReduceScatter => bytes(count - own),
        Kind::AllToAll => bytes(own - own.div_ceil(ranks)),
        Kind::AllReduce if bytes(count) <= SMALL as u64 => others * bytes(count),
        Kind::AllReduce => {
            // Everybody's pieces of each block, and the result of its own piece to everybody.
            let longest = ranks * SEGMENT / element.size();
            let piece = |block: usize| shard_range(block, ranks, 0).len();
            let own = count / longest * piece(longest) + piece(count % longest);
            bytes(count - own) + others * bytes(own)
        }
        // A binomial tree: the root sends to a rank for each bit.
        Kind::Broadcast => u64::from(ranks.next_power_of_two().trailing_zeros()) * bytes(count),
        Kind::SendReceive => bytes(own),
        Kind::Barrier => 0,
    }
}

/// Most bytes of messages that have come to a rank and were not taken yet, where each of its peers sends it
/// `bytes`: peers run ahead of it by some segments.
pub fn messages_in_flight(ranks: usize, bytes: u64) -> u64 {
    let ahead = (AHEAD as u64 + 1) * SEGMENT as u64;
    ranks.saturating_sub(1) as u64 * bytes.min(ahead)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::host::{Counted, Exchange, Group, LocalLinks, Queue, Reduction};

    /// What the first rank of a group really sends.
    fn really_sent(kind: Kind, ranks: usize, count: usize, element: Element) -> u64 {
        let links: Vec<_> = LocalLinks::world(ranks)
            .into_iter()
            .map(|links| Arc::new(Counted::new(links)))
            .collect();
        let queues: Vec<Queue> = links
            .iter()
            .map(|links| {
                let group =
                    Group::new(links.clone(), (0..ranks).collect(), 1, Duration::from_secs(60));
                Queue::new(group).unwrap()
            })
            .collect();
        let lengths: Vec<usize> = (0..ranks).map(|r| shard_range(count, ranks, r).len()).collect();
        let pending: Vec<_> = queues
            .iter()
            .enumerate()
            .map(|(rank, queue)| {
                let zeros = |elements: usize| vec![0_u8; elements * element.size()];
                match kind {
                    Kind::AllGather => queue.all_gather(zeros(lengths[rank]), &lengths, element),
                    Kind::ReduceScatter => {
                        queue.reduce_scatter(zeros(count), &lengths, element, Reduction::Sum)
                    }
                    Kind::AllToAll => {
                        let piece = |from: usize, to| shard_range(lengths[from], ranks, to).len();
                        let send: Vec<usize> = (0..ranks).map(|to| piece(rank, to)).collect();
                        let receive: Vec<usize> =
                            (0..ranks).map(|from| piece(from, rank)).collect();
                        queue.all_to_all(zeros(lengths[rank]), &send, &receive, element)
                    }
                    Kind::Broadcast => queue.broadcast(zeros(count), count, element, 0),
                    _ => queue.all_reduce(zeros(count), element, Reduction::Sum),
                }
            })
            .collect();
        for pending in pending {
            pending.wait().unwrap();
        }
        links[0].sent()
    }

    #[test]
    fn what_is_counted_is_what_is_sent() {
        let kinds = [
            Kind::AllGather,
            Kind::ReduceScatter,
            Kind::AllReduce,
            Kind::AllToAll,
            Kind::Broadcast,
        ];
        for ranks in [2, 3, 5] {
            for count in [1, 1000, 8192, 8193, 200_003, 700_000] {
                for element in [Element::F32, Element::BF16] {
                    for kind in kinds {
                        assert_eq!(
                            bytes_sent(kind, ranks, count, count.div_ceil(ranks), element),
                            really_sent(kind, ranks, count, element),
                            "{kind:?} of {count} x {element} between {ranks}"
                        );
                    }
                }
            }
        }
    }
}
