//! Attention between ranks that are threads, beside attention on one.

mod equal;
mod exchanges;
mod failure;

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{DType, Device, Int, Tensor};
use burn_titan_kernels::{AttentionMask, Scores, attention, inject_gradient};

use super::*;
use crate::communicator::Communicator;
use crate::host::{Counted, LocalLinks};
use crate::world::World;

const BATCH: usize = 2;
const HEAD_DIM: usize = 24;
const METHODS: [Method; 2] = [Method::Ring, Method::AllGather];

/// An attention over sequences that ranks share.
#[derive(Debug, Clone)]
struct Case {
    ranks: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    /// The position of each token in its document, `[BATCH, seq]`.
    positions: Vec<u32>,
    window: Option<usize>,
    softcap: Option<f32>,
    dtype: DType,
}

/// The output and the gradients of query, key and value.
type Results = [Tensor<4>; 4];

impl Case {
    /// Causal sequences in f32.
    fn new(ranks: usize, seq: usize, heads: usize, kv_heads: usize) -> Self {
        let positions = packed(&[&[seq], &[seq]], seq);
        Self {
            ranks,
            seq,
            heads,
            kv_heads,
            positions,
            window: None,
            softcap: None,
            dtype: DType::F32,
        }
    }

    fn shards(&self) -> SequenceShards {
        SequenceShards::new(self.seq, self.ranks).unwrap()
    }

    fn scores(&self) -> Scores {
        Scores { softcap: self.softcap, ..Scores::scaled(HEAD_DIM) }
    }

    /// Query, key, value and the gradient of the output, of the whole sequence.
    fn inputs(&self) -> [Tensor<4>; 4] {
        let heads = [self.heads, self.kv_heads, self.kv_heads, self.heads];
        let mut seed = 0;
        heads.map(|heads| {
            seed += 1;
            noise([BATCH, heads, self.seq, HEAD_DIM], seed).cast(self.dtype)
        })
    }

    /// What every token sees of the whole sequence, made by tensor operations.
    fn mask(&self) -> AttentionMask {
        let first = self.positions.iter().enumerate();
        let first: Vec<i32> = first.map(|(i, p)| (i % self.seq) as i32 - *p as i32).collect();
        let first = Tensor::<1, Int>::from_data(first.as_slice(), &Device::flex());
        let mask = AttentionMask::documents(first.reshape([BATCH, self.seq]));
        match self.window {
            Some(window) => mask.window(window),
            None => mask,
        }
    }

    /// The same on one rank, from these inputs.
    fn alone(&self, inputs: [Tensor<4>; 4]) -> Results {
        let (mask, scores) = (self.mask(), self.scores());
        differentiated(inputs, |[q, k, v]| attention(q, k, v, &mask, scores).output)
    }

    /// On a rank, over the whole sequence's inputs.
    fn on_rank(&self, peers: &Peers, method: Method) -> Results {
        let (shards, rank) = (self.shards(), peers.rank());
        let parallel = ContextParallel::new(peers.clone(), method);
        let visible = self.visible(rank);
        let own = self.inputs().map(|x| part(&x, &shards, rank));
        differentiated(own, |[q, k, v]| parallel.attention(q, k, v, &visible, self.scores()))
    }

    fn visible(&self, rank: usize) -> Visible {
        Visible::new(self.shards(), rank, &self.positions, self.window, &Device::flex().autodiff())
    }

    /// On all ranks; their results in the order of the sequence, as what each rank has.
    fn on_ranks(&self, method: Method) -> Vec<Results> {
        on_ranks(self.ranks, Duration::from_secs(120), |world| {
            let peers = peers(&world);
            let results = self.on_rank(&peers, method);
            peers.check().unwrap();
            results
        })
    }
}

/// The output of a function of query, key and value, and their gradients from that of the output, which comes last.
fn differentiated(
    [query, key, value, gradient]: [Tensor<4>; 4],
    f: impl Fn([Tensor<4>; 3]) -> Tensor<4>,
) -> Results {
    let leaves = [query, key, value].map(|x| x.autodiff().require_grad());
    let output = f(leaves.clone());
    let gradients = inject_gradient(output.clone(), gradient).backward();
    let [query, key, value] = leaves.map(|x| x.grad(&gradients).unwrap());
    [output.inner(), query, key, value]
}

/// A rank's tokens of a tensor over the whole sequence.
fn part(x: &Tensor<4>, shards: &SequenceShards, rank: usize) -> Tensor<4> {
    Tensor::cat(shards.ranges(rank).map(|range| x.clone().slice_dim(2, range)).to_vec(), 2)
}

/// The positions of tokens in documents of these lengths; what is left of a sequence is its last document.
fn packed(rows: &[&[usize]], seq: usize) -> Vec<u32> {
    let row = |documents: &&[usize]| {
        let rest = seq - documents.iter().sum::<usize>();
        let all: Vec<usize> = documents.iter().copied().chain([rest]).collect();
        all.into_iter().flat_map(|length| 0..length as u32).collect::<Vec<_>>()
    };
    rows.iter().flat_map(row).collect()
}

/// Runs ranks as threads, and returns what they do.
fn on_ranks<T: Send>(size: usize, timeout: Duration, f: impl Fn(World) -> T + Sync) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = World::local(size, timeout)
            .into_iter()
            .map(|world| scope.spawn(move || f(world)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn peers(world: &World) -> Peers {
    let members: Vec<usize> = (0..world.size()).collect();
    Peers::new(world.communicator("cp", &members).unwrap())
}

/// Repeatable numbers in `[-1, 1)`.
fn noise(shape: [usize; 4], seed: u64) -> Tensor<4> {
    let number = |i: u64| {
        let mut x = i.wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 31;
        x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^= x >> 32;
        (x >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(number).collect();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape(shape)
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.clone().into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}
