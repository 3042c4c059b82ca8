//! Expert parallelism: ranks that have all experts of a layer together, some each.
//!
//! Each rank has tokens of its own, and its router sends every token to some experts (Lepikhin et al., 2020). The rows
//! of a rank's tokens, in the order of experts, go to the ranks that have these ([`ExpertParallel::dispatch`]), and what
//! the experts make of them comes back ([`ExpertParallel::combine`]). How many go where is told before. No row is
//! padded, and none is dropped.
//!
//! A rank's experts meet rows of all ranks, so that the gradients of their weights are sums over the tokens of all of
//! them: there is nothing to scale.

#[cfg(test)]
mod tests;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_titan_kernels::{differentiable, gather_rows};

use crate::communicator::{Buffer, Work};
use crate::peers::Peers;
use crate::tensor_parallel::rows::shaped;

/// A rank among those that have all experts together.
#[derive(Debug, Clone)]
pub struct ExpertParallel {
    peers: Peers,
}

/// Where the rows of a dispatch came from, and how they lie.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Rows to each rank, and from each.
    sent: Vec<usize>,
    received: Vec<usize>,
    /// For each row in the order of this rank's experts, its place among those that came; and the other way round.
    order: Vec<usize>,
    back: Vec<usize>,
    /// Rows of each of this rank's experts.
    counts: Vec<usize>,
}

impl Arrival {
    /// Rows of each of this rank's experts.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }
}

impl ExpertParallel {
    /// A rank among `peers`.
    pub fn new(peers: Peers) -> Self {
        Self { peers }
    }

    /// There is no other rank.
    pub fn alone() -> Self {
        Self::new(Peers::alone())
    }

    /// The ranks that have all experts together.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Tells the ranks how many rows each has for each expert. `counts` are those of this rank, for all experts, of
    /// which every rank has equally many.
    pub fn arrival(&self, counts: &[usize], device: &Device) -> Arrival {
        let (ranks, experts) = (self.peers.size(), counts.len());
        let each = experts / ranks;
        let own: Vec<i32> = counts.iter().map(|count| *count as i32).collect();
        let ints = |values: Vec<i32>| {
            let length = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [length]), (device, DType::I32))
        };
        let lengths = vec![experts; ranks];
        let told =
            self.peers.begin(|peers| peers.all_gather(Buffer::Int(ints(own.clone())), &lengths));
        // Without an answer, as if all had what this one has: nothing of it is used.
        let all = self.peers.settle(told, || ints(own.repeat(ranks)).into());
        let all: Vec<usize> = host(all.int());
        let mine = |from: usize| {
            let start = from * experts + self.peers.rank() * each;
            &all[start..start + each]
        };
        let sent = counts.chunks_exact(each).map(|counts| counts.iter().sum()).collect();
        let received: Vec<usize> = (0..ranks).map(|from| mine(from).iter().sum()).collect();
        let (order, back) = places(ranks, each, |from, expert| mine(from)[expert]);
        let counts = (0..each).map(|expert| (0..ranks).map(|from| mine(from)[expert]).sum());
        Arrival { sent, received, order, back, counts: counts.collect() }
    }

    /// Sends rows to the ranks that have their experts, and does something else while they travel.
    ///
    /// # Shapes
    /// - `rows`: `[rows, dim]`, in the order of experts, as many as [`ExpertParallel::arrival`] was told
    /// - result: `[rows that came, dim]`, in the order of this rank's experts, and for each in that of ranks; and what
    ///   `meanwhile` gives
    pub fn dispatch<T>(
        &self,
        rows: Tensor<2>,
        arrival: &Arrival,
        meanwhile: impl FnOnce() -> T,
    ) -> (Tensor<2>, T) {
        let (there, back) = (self.clone(), self.clone());
        let (a, b) = (arrival.clone(), arrival.clone());
        let mut other = None;
        let rows = differentiable([rows], |[rows]| {
            let travelling = there.begin(rows, &a.sent, &a.received);
            other = Some(meanwhile());
            let came = there.finish(travelling);
            let send =
                move |gradient| [back.exchange(in_order(gradient, &b.back), &b.received, &b.sent)];
            (in_order(came, &a.order), Box::new(send))
        });
        (rows, other.expect("it has run"))
    }

    /// Sends what the experts made of rows back to where these came from.
    ///
    /// # Shapes
    /// - `rows`: as [`ExpertParallel::dispatch`] gave them
    /// - result: in the order of the rows that were dispatched
    pub fn combine(&self, rows: Tensor<2>, arrival: &Arrival) -> Tensor<2> {
        let (there, back) = (self.clone(), self.clone());
        let (a, b) = (arrival.clone(), arrival.clone());
        differentiable([rows], |[rows]| {
            let came = there.exchange(in_order(rows, &a.back), &a.received, &a.sent);
            let send =
                move |gradient| [in_order(back.exchange(gradient, &b.sent, &b.received), &b.order)];
            (came, Box::new(send))
        })
    }

    /// Sends so many rows to each rank, and gets so many of each.
    fn exchange(&self, rows: Tensor<2>, send: &[usize], receive: &[usize]) -> Tensor<2> {
        self.finish(self.begin(rows, send, receive))
    }

    fn begin(&self, rows: Tensor<2>, send: &[usize], receive: &[usize]) -> Travelling {
        let [count, dim] = rows.dims();
        let kind = (rows.device(), rows.dtype());
        let elements = |rows: &[usize]| rows.iter().map(|rows| rows * dim).collect::<Vec<_>>();
        let flat = shaped(rows, [count * dim]);
        let work = self
            .peers
            .begin(|peers| peers.all_to_all(flat.into(), &elements(send), &elements(receive)));
        Travelling { work, dims: [receive.iter().sum(), dim], kind }
    }

    fn finish(&self, travelling: Travelling) -> Tensor<2> {
        let Travelling { work, dims, kind: (device, dtype) } = travelling;
        let nothing = || Tensor::<1>::zeros([dims[0] * dims[1]], (&device, dtype)).into();
        shaped(self.peers.settle(work, nothing).float(), dims)
    }
}

/// Rows on their way.
struct Travelling {
    work: Work<Buffer>,
    /// Of what comes.
    dims: [usize; 2],
    kind: (Device, DType),
}

/// Rows in another order.
fn in_order(rows: Tensor<2>, places: &[usize]) -> Tensor<2> {
    if places.is_empty() { rows } else { gather_rows(rows, places) }
}

/// For rows that come from ranks one after the other, each in the order of experts: the place of each row in the order
/// of experts, and of ranks for each, and the place in that order of each row.
fn places(
    ranks: usize,
    experts: usize,
    count: impl Fn(usize, usize) -> usize,
) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![vec![0; experts]; ranks];
    let mut next = 0;
    for (from, starts) in starts.iter_mut().enumerate() {
        for (expert, start) in starts.iter_mut().enumerate() {
            *start = next;
            next += count(from, expert);
        }
    }
    let mut order = Vec::with_capacity(next);
    for expert in 0..experts {
        for (from, starts) in starts.iter().enumerate() {
            order.extend(starts[expert]..starts[expert] + count(from, expert));
        }
    }
    let mut back = vec![0; next];
    for (place, at) in order.iter().enumerate() {
        back[*at] = place;
    }
    (order, back)
}

/// Counts on the host.
fn host(counts: Tensor<1, Int>) -> Vec<usize> {
    let counts = counts.into_data().try_into_vec::<i32>();
    let counts = counts.expect("integers of 32 bits were sent");
    counts.into_iter().map(|count| count.max(0) as usize).collect()
}
