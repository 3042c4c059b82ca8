//! What is exchanged is what was said before.

use std::sync::Mutex;

use super::*;
use crate::communicator::{Buffer, Reduction, Work};

/// A communicator that writes down what is begun.
struct Recorded {
    communicator: Box<dyn Communicator>,
    begun: Arc<Mutex<Vec<Exchange>>>,
}

impl Recorded {
    fn record(&self, transfer: Transfer, count: usize, x: &Buffer) {
        let Buffer::Float(x) = x else { panic!("attention exchanges floats") };
        let element = match x.dtype() {
            DType::F32 => Element::F32,
            DType::BF16 => Element::BF16,
            other => panic!("{other:?}"),
        };
        self.begun.lock().unwrap().push(Exchange { transfer, count, element });
    }
}

impl Communicator for Recorded {
    fn rank(&self) -> usize {
        self.communicator.rank()
    }

    fn size(&self) -> usize {
        self.communicator.size()
    }

    fn all_gather(&self, shard: Buffer, lengths: &[usize]) -> Work<Buffer> {
        let own = Transfer::AllGather(lengths[self.rank()]);
        self.record(own, lengths.iter().sum(), &shard);
        self.communicator.all_gather(shard, lengths)
    }

    fn reduce_scatter(&self, whole: Buffer, lengths: &[usize], by: Reduction) -> Work<Buffer> {
        assert_eq!(by, Reduction::Sum);
        let own = Transfer::ReduceScatter(lengths[self.rank()]);
        self.record(own, lengths.iter().sum(), &whole);
        self.communicator.reduce_scatter(whole, lengths, by)
    }

    fn send(&self, x: Buffer, to: usize) -> Work<()> {
        self.record(Transfer::Send(to), x.elements(), &x);
        self.communicator.send(x, to)
    }

    fn receive(&self, like: Buffer, from: usize) -> Work<Buffer> {
        self.record(Transfer::Receive(from), like.elements(), &like);
        self.communicator.receive(like, from)
    }

    fn all_reduce(&self, _: Buffer, _: Reduction) -> Work<Buffer> {
        panic!("attention reduces nothing for all")
    }

    fn all_to_all(&self, _: Buffer, _: &[usize], _: &[usize]) -> Work<Buffer> {
        panic!("attention deals nothing out")
    }

    fn broadcast(&self, _: Buffer, _: usize) -> Work<Buffer> {
        panic!("attention has no root")
    }

    fn barrier(&self) -> Work<()> {
        panic!("attention needs no barrier")
    }
}

#[test]
fn the_planner_knows_every_operation_and_every_byte() {
    for (ranks, seq, dtype, element) in [
        (2, 37, DType::F32, Element::F32),
        (3, 16, DType::BF16, Element::BF16),
        (4, 129, DType::BF16, Element::BF16),
        (5, 37, DType::F32, Element::F32),
    ] {
        // Blocks that are not computed go around as well.
        let positions = packed(&[&[seq / 2, 3], &vec![1; seq]], seq);
        let case = Case { dtype, positions, ..Case::new(ranks, seq, 10, 5) };
        for method in METHODS {
            let links: Vec<_> = LocalLinks::world(ranks)
                .into_iter()
                .map(|links| Arc::new(Counted::new(links)))
                .collect();
            std::thread::scope(|scope| {
                for (rank, links) in links.iter().enumerate() {
                    let case = &case;
                    scope.spawn(move || {
                        let world = World::over(links.clone(), Duration::from_secs(120));
                        let members: Vec<usize> = (0..ranks).collect();
                        let communicator = world.communicator("cp", &members).unwrap();
                        let begun = Arc::default();
                        let recorded = Recorded { communicator, begun: Arc::clone(&begun) };
                        let peers = Peers::new(Box::new(recorded));
                        case.on_rank(&peers, method);
                        peers.check().unwrap();
                        let want = ContextParallel::exchanges(
                            method,
                            &case.shards(),
                            rank,
                            BATCH,
                            case.kv_heads,
                            HEAD_DIM,
                            element,
                        );
                        let all = [want.forward.as_slice(), want.backward.as_slice()].concat();
                        assert_eq!(
                            *begun.lock().unwrap(),
                            all,
                            "{method:?}, rank {rank} of {ranks}"
                        );
                        assert_eq!(links.sent(), want.bytes_sent(ranks));
                    });
                }
            });
        }
    }
}

#[test]
fn of_even_shards_the_first_rank_sends_what_traffic_counts() {
    let shards = SequenceShards::new(64, 4).unwrap();
    for method in METHODS {
        let all = ContextParallel::exchanges(method, &shards, 0, 3, 2, 8, Element::BF16);
        for exchange in all.forward.iter().chain(&all.backward) {
            if !matches!(exchange.transfer, Transfer::Receive(_)) {
                let Exchange { count, element, .. } = *exchange;
                let own = match exchange.transfer {
                    Transfer::Send(_) => count,
                    _ => count.div_ceil(4),
                };
                let want = crate::host::bytes_sent(exchange.kind(), 4, count, own, element);
                assert_eq!(exchange.bytes_sent(4), want);
            }
        }
        assert_eq!(
            (all.forward.len(), all.backward.len()),
            match method {
                Method::Ring => (6, 14),
                Method::AllGather => (1, 2),
            }
        );
    }
}

#[test]
fn a_rank_alone_exchanges_nothing() {
    let shards = SequenceShards::new(5, 1).unwrap();
    for method in METHODS {
        let all = ContextParallel::exchanges(method, &shards, 0, 3, 2, 8, Element::F32);
        assert_eq!((all.forward.len(), all.backward.len(), all.bytes_sent(1)), (0, 0, 0));
    }
}
