//! A sub-module by chunks of tokens, so that the exchange of one chunk runs while another is computed.
//!
//! The tape of Burn's autodiff runs by depth. The chunks are one chain of nodes, each chunk deeper than the one
//! before, so that the backward takes them one by one too, the last first:
//!
//! ```text
//! x > open > | chunk 0 > sub-module > given | > | chunk 1 > sub-module > given | > close > result
//! ```
//!
//! Along the chain but for the sub-module goes a ticket, one number that only stands for the order. The numbers
//! themselves go through a [`Pass`], forward and backward alike: the exchange by which a chunk leaves is, backward,
//! the one by which its gradient enters, and the other way round.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device, Tensor};
use burn_titan_kernels::differentiable;

use super::rows::{self, Rows};
use super::{TensorParallel, parts};
use crate::placement::shard_range;

impl TensorParallel {
    /// `leave(f(enter(x)))` for a function that treats every token alone, as a feed-forward does, in `chunks` chunks
    /// of tokens: while one is computed, the exchanges of the others go on (asynchronous tensor parallelism). The
    /// same up to the rounding of sums: gradients of the function's parameters are added up over chunks, in their
    /// own dtype.
    ///
    /// `f` gets and returns `[1, tokens of the chunk, dim]`, or `[batch, seq, dim]` where there is one chunk or one
    /// rank. With fewer tokens than chunks there are fewer chunks.
    ///
    /// # Shapes
    /// - `x` and result: the stream
    pub fn by_chunks(
        &self,
        x: Tensor<3>,
        [batch, seq]: [usize; 2],
        chunks: usize,
        f: impl Fn(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let tokens = batch * seq;
        let most = if self.sequence { parts(tokens, self.peers.size())[0] } else { tokens };
        let chunks = chunks.min(most);
        if !self.peers.several() || chunks <= 1 {
            return self.leave(f(self.enter(x, [batch, seq])));
        }
        let order: Vec<usize> = (0..chunks).collect();
        let reverse = order.iter().rev().copied().collect();
        let forward = Pass::shared(self, x.dims(), tokens, order);
        let backward = Pass::shared(self, x.dims(), tokens, reverse);
        let ticket = Ticket { device: x.device().inner(), dtype: x.dtype() };

        let back = backward.clone();
        let mut chain = differentiable([x], |[x]| {
            forward.get().open(x);
            (ticket.tensor(), Box::new(move |_| [back.get().close()]))
        });
        for _ in 0..chunks {
            let (back, back_ticket) = (backward.clone(), ticket.clone());
            let chunk = differentiable([chain], |_| {
                let give = move |dx| {
                    back.get().give(dx);
                    [back_ticket.tensor()]
                };
                (forward.get().take(), Box::new(give))
            });
            let back = backward.clone();
            chain = differentiable([f(chunk)], |[y]| {
                forward.get().give(y);
                (ticket.tensor(), Box::new(move |_| [back.get().take()]))
            });
        }
        differentiable([chain], |_| {
            let open = move |dy| {
                backward.get().open(dy);
                [ticket.tensor()]
            };
            (forward.get().close(), Box::new(open))
        })
    }
}

/// What goes along the chain.
#[derive(Clone)]
struct Ticket {
    device: Device,
    dtype: DType,
}

impl Ticket {
    fn tensor(&self) -> Tensor<3> {
        Tensor::zeros([1; 3], (&self.device, self.dtype))
    }
}

/// The chunks on their way through the sub-module, in one direction.
struct Pass {
    parallel: TensorParallel,
    /// Of the stream.
    shape: [usize; 3],
    /// Tokens of each rank.
    shares: Vec<usize>,
    /// The order of the chunks.
    order: Vec<usize>,
    entering: VecDeque<Rows<3>>,
    leaving: Vec<Rows<3>>,
}

/// A pass as the nodes of the chain share it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Pass>>);

impl Shared {
    fn get(&self) -> MutexGuard<'_, Pass> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    fn shared(
        parallel: &TensorParallel,
        shape: [usize; 3],
        tokens: usize,
        order: Vec<usize>,
    ) -> Shared {
        // A whole stream is every rank's.
        let shares = if parallel.sequence { parallel.shares(tokens) } else { vec![tokens] };
        Shared(Arc::new(Mutex::new(Self {
            parallel: parallel.clone(),
            shape,
            shares,
            order,
            entering: VecDeque::new(),
            leaving: Vec::new(),
        })))
    }

    /// How many of its tokens each rank has in a chunk.
    fn rows(&self, chunk: usize) -> Vec<usize> {
        let rows =
            self.shares.iter().map(|share| shard_range(*share, self.order.len(), chunk).len());
        rows.collect()
    }

    /// Begins to gather the chunks of the stream.
    fn open(&mut self, x: Tensor<3>) {
        let [batch, seq, dim] = self.shape;
        let (peers, sequence) = (&self.parallel.peers, self.parallel.sequence);
        let x = if sequence { x } else { x.reshape([1, batch * seq, dim]) };
        for chunk in &self.order {
            let own = shard_range(x.dims()[1], self.order.len(), *chunk);
            let own = x.clone().slice([0..1, own]);
            let entering = if sequence {
                let rows = self.rows(*chunk);
                rows::gather(peers, own, &rows, [1, rows.iter().sum(), dim])
            } else {
                rows::known(peers, own)
            };
            self.entering.push_back(entering);
        }
    }

    /// The next chunk.
    fn take(&mut self) -> Tensor<3> {
        self.entering.pop_front().expect("as many chunks were opened as are taken").wait()
    }

    /// Begins to sum what the ranks have made of the chunk.
    fn give(&mut self, y: Tensor<3>) {
        let (peers, rank) = (&self.parallel.peers, self.parallel.peers.rank());
        let leaving = if self.parallel.sequence {
            let rows = self.rows(self.order[self.leaving.len()]);
            rows::sum_own(peers, y, &rows, [1, rows[rank], self.shape[2]])
        } else {
            rows::sum(peers, y)
        };
        self.leaving.push(leaving);
    }

    /// The stream of all chunks.
    fn close(&mut self) -> Tensor<3> {
        let done = self.leaving.drain(..).map(Rows::wait);
        let mut chunks: Vec<_> = self.order.iter().zip(done).collect();
        chunks.sort_by_key(|(chunk, _)| **chunk);
        let stream = Tensor::cat(chunks.into_iter().map(|(_, rows)| rows).collect(), 1);
        if self.parallel.sequence { stream } else { stream.reshape(self.shape) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::host::{Counted, LocalLinks};
    use crate::peers::Peers;
    use crate::trace::Span;
    use crate::world::World;

    const CHUNKS: usize = 3;
    const DIM: usize = 8;
    /// Of each rank in a chunk.
    const TOKENS: usize = 4;

    /// One of two ranks, whose computations prove that exchanges go on.
    #[derive(Clone)]
    struct Rank {
        world: World,
        links: Arc<Counted<LocalLinks>>,
        /// Computations that rank 0 has begun.
        begun: Arc<AtomicUsize>,
        /// Computations of this rank.
        calls: Arc<AtomicUsize>,
        sequence: bool,
    }

    impl Rank {
        /// Rank 0 ends the computation of a chunk only once it has sent its part in the exchange of the chunk before.
        /// Rank 1 ends that of the chunk before, and takes part in its exchange, only once rank 0 has begun to compute
        /// the chunk. So the two overlap, or somebody waits for ever.
        fn compute(&self) {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            let work = || {
                if self.world.rank() == 0 {
                    self.begun.fetch_add(1, Ordering::Release);
                    wait_until(|| self.links.sent() >= self.sent_before(call));
                } else if call % CHUNKS < CHUNKS - 1 {
                    wait_until(|| self.begun.load(Ordering::Acquire) >= call + 2);
                }
            };
            self.world.trace().span("compute", || call.to_string(), work);
        }

        /// Bytes that a rank sends until the exchange of the chunk before is done.
        fn sent_before(&self, call: usize) -> u64 {
            let chunk = TOKENS * DIM * size_of::<f32>();
            let (pass, before) = (call / CHUNKS, call % CHUNKS);
            // A gather and a scatter of each chunk; or the sum of a chunk twice as long.
            let sent = if self.sequence { 2 * pass * CHUNKS + CHUNKS + before } else { 2 * call };
            (sent * chunk) as u64
        }

        /// What this rank does in a forward and a backward.
        fn spans(self) -> Vec<Span> {
            let peers = Peers::new(self.world.communicator("tp", &[0, 1]).unwrap());
            let tp = TensorParallel::new(peers, self.sequence, true, 2);
            self.world.trace().start();
            let tokens = CHUNKS * TOKENS * if self.sequence { 1 } else { 2 };
            let x = Tensor::<3>::ones([1, tokens, DIM], &Device::flex().autodiff()).require_grad();
            let y = tp.by_chunks(x.clone(), [1, 2 * CHUNKS * TOKENS], CHUNKS, |x| {
                let rank = self.clone();
                differentiable([x], |[x]| {
                    rank.compute();
                    let backward = move |dy| {
                        rank.compute();
                        [dy]
                    };
                    (x, Box::new(backward))
                })
            });
            assert!(x.grad(&y.backward()).is_some());
            tp.peers().check().unwrap();
            self.world.trace().stop()
        }
    }

    fn wait_until(done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "no exchange runs meanwhile");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_exchange_of_a_chunk_overlaps_the_computation_of_the_next() {
        for (sequence, leave) in [(false, "all_reduce"), (true, "reduce_scatter")] {
            let begun: Arc<AtomicUsize> = Arc::default();
            let rank = |links: LocalLinks| {
                let links = Arc::new(Counted::new(links));
                let world = World::over(links.clone(), Duration::from_secs(60));
                let (begun, calls) = (begun.clone(), Arc::default());
                let rank = Rank { world, links, begun, calls, sequence };
                std::thread::spawn(move || rank.spans())
            };
            let threads: Vec<_> = LocalLinks::world(2).into_iter().map(rank).collect();
            let spans = threads.into_iter().map(|thread| thread.join().unwrap());
            let spans = spans.collect::<Vec<_>>().swap_remove(0);
            let of = |what: &dyn Fn(&Span) -> bool| -> Vec<Span> {
                spans.iter().filter(|span| what(span)).cloned().collect()
            };
            let computations = of(&|span| span.lane == "compute");
            let exchanges = of(&|span| span.name.contains(leave));
            assert_eq!((computations.len(), exchanges.len()), (2 * CHUNKS, 2 * CHUNKS));
            let pairs = computations.iter().skip(1).zip(&exchanges).enumerate();
            for (i, (computation, exchange)) in pairs.filter(|(i, _)| (i + 1) % CHUNKS != 0) {
                let overlap = computation.start < exchange.start + exchange.duration
                    && exchange.start < computation.start + computation.duration;
                assert!(overlap, "{i}: {exchange:?} beside {computation:?}");
            }
        }
    }
}
