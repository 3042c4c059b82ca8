//! Tensor parallelism: what one rank of the `tp` axis does to the residual stream.
//!
//! The ranks share the work on every token of the same micro-batch: each has some heads, some of a feed-forward's
//! middle, some words of the vocabulary. A sub-module is the plain one, only narrower; [`TensorParallel::enter`]
//! stands before it and [`TensorParallel::leave`] behind it:
//!
//! - Without sequence parallelism every rank has the whole stream `[batch, seq, dim]`. `enter` is the identity
//!   whose backward sums over ranks, `leave` the sum over ranks whose backward is the identity (*f* and *g* of
//!   Shoeybi et al., 2019). Gradients of parameters outside of sub-modules, as those of norms, are whole on every rank.
//! - With it (Korthikanti et al., 2022) a rank has its share of the tokens between sub-modules,
//!   `[1, own tokens, dim]`, in the order of batch and then sequence, cut by [`shard_range`]. `enter` gathers, `leave`
//!   sums and scatters, each the backward of the other. Gradients of parameters outside of sub-modules are summands:
//!   whoever holds the parameters sums them over the ranks.
//!
//! [`TensorParallel::by_chunks`] is both around a feed-forward, with the exchanges hidden behind the computation.
//!
//! The embedding and the head are cut by words: [`shard_range`] of the vocabulary. With a parallel loss, the logits of
//! a word exist only on the rank that has it, and never all at once.
//!
//! Ranks make the same exchanges in the same order: they run the same modules on tensors that are tracked alike. An
//! exchange that fails is kept by [`Peers`], to be asked for behind a forward or a backward.

mod chunks;
mod head;
pub(crate) mod rows;
#[cfg(test)]
mod tests;

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor};
use burn_titan_kernels::{differentiable, embedding};

use crate::peers::Peers;
use crate::placement::shard_range;

/// One rank of the `tp` axis. Where it is the only one, every operation is the plain one, bit by bit, and the stream
/// is whole.
#[derive(Debug, Clone)]
pub struct TensorParallel {
    peers: Peers,
    sequence: bool,
    loss: bool,
    vocabulary: usize,
}

impl TensorParallel {
    /// There is no other rank; then nobody asks how many words there are.
    pub fn alone() -> Self {
        Self::new(Peers::alone(), false, false, 0)
    }

    /// A rank among `peers`; `sequence`: each has its own tokens between sub-modules; `loss`: logits stay with the
    /// rank that has their word; `vocabulary`: words of all ranks, at least one a rank.
    pub fn new(peers: Peers, sequence: bool, loss: bool, vocabulary: usize) -> Self {
        let sequence = sequence && peers.several();
        Self { peers, sequence, loss, vocabulary }
    }

    /// The ranks of the axis.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Whether the stream is cut by tokens: asked for, and there are other ranks.
    pub fn cuts_stream(&self) -> bool {
        self.sequence
    }

    /// How many of a micro-batch's tokens each rank has between sub-modules where the stream is cut.
    pub fn shares(&self, tokens: usize) -> Vec<usize> {
        parts(tokens, self.peers.size())
    }

    /// The words of the vocabulary that this rank has.
    pub fn words(&self) -> Range<usize> {
        shard_range(self.vocabulary, self.peers.size(), self.peers.rank())
    }

    /// The stream as a sub-module of this rank gets it.
    ///
    /// # Shapes
    /// - `x`: the stream, `[batch, seq, dim]`, or `[1, own tokens, dim]` where it is cut
    /// - result: `[batch, seq, dim]`
    pub fn enter(&self, x: Tensor<3>, [batch, seq]: [usize; 2]) -> Tensor<3> {
        if !self.peers.several() {
            return x;
        }
        let peers = self.peers.clone();
        if !self.sequence {
            return differentiable([x], |[x]| {
                (x, Box::new(move |dy| [rows::sum(&peers, dy).wait()]))
            });
        }
        let (shares, shape) = (self.shares(batch * seq), x.dims());
        differentiable([x], |[x]| {
            let whole = rows::gather(&peers, x, &shares, [batch, seq, shape[2]]).wait();
            (whole, Box::new(move |dy| [rows::sum_own(&peers, dy, &shares, shape).wait()]))
        })
    }

    /// The stream's summand out of what the sub-modules of all ranks return.
    ///
    /// # Shapes
    /// - `y`: this rank's summand, `[batch, seq, dim]`
    /// - result: `[batch, seq, dim]`, or `[1, own tokens, dim]` where the stream is cut
    pub fn leave(&self, y: Tensor<3>) -> Tensor<3> {
        if !self.peers.several() {
            return y;
        }
        let peers = self.peers.clone();
        if !self.sequence {
            return differentiable([y], |[y]| (rows::sum(&peers, y).wait(), Box::new(|dx| [dx])));
        }
        let shape @ [batch, seq, dim] = y.dims();
        let shares = self.shares(batch * seq);
        differentiable([y], |[y]| {
            let own = rows::sum_own(&peers, y, &shares, [1, shares[peers.rank()], dim]).wait();
            (own, Box::new(move |dx| [rows::gather(&peers, dx, &shares, shape).wait()]))
        })
    }

    /// The tokens of the stream that this rank computes alone, where others compute the rest.
    ///
    /// # Shapes
    /// - `x`: the stream
    /// - result: `[own tokens, dim]`
    pub fn share(&self, x: Tensor<3>, [batch, seq]: [usize; 2]) -> Tensor<2> {
        let [rows, columns, dim] = x.dims();
        if !self.peers.several() || self.sequence {
            return rows::shaped(x, [rows * columns, dim]);
        }
        let own = shard_range(batch * seq, self.peers.size(), self.peers.rank());
        self.enter(x, [batch, seq]).reshape([batch * seq, dim]).slice(own)
    }

    /// The stream out of what every rank has computed of its own tokens: what [`TensorParallel::share`] took apart.
    ///
    /// # Shapes
    /// - `y`: `[own tokens, dim]`
    /// - result: the stream
    pub fn unite(&self, y: Tensor<2>, [batch, seq]: [usize; 2]) -> Tensor<3> {
        let [own, dim] = y.dims();
        if self.sequence {
            return rows::shaped(y, [1, own, dim]);
        }
        if !self.peers.several() {
            return y.reshape([batch, seq, dim]);
        }
        let range = shard_range(batch * seq, self.peers.size(), self.peers.rank());
        let others = Tensor::zeros([batch * seq, dim], (&y.device(), y.dtype()));
        let whole = if range.is_empty() { others } else { others.slice_assign([range, 0..dim], y) };
        self.leave(whole.reshape([batch, seq, dim]))
    }

    /// What the first rank has of what all ranks have computed of the same tokens; of any shape.
    pub fn of_first<const D: usize>(&self, own: Tensor<D, Int>) -> Tensor<D, Int> {
        if !self.peers.several() {
            return own;
        }
        let (dims, dtype) = (own.dims(), own.dtype());
        let flat = own.reshape([dims.iter().product::<usize>()]).cast(DType::I32);
        let work = self.peers.begin(|peers| peers.broadcast(flat.clone().into(), 0));
        self.peers.settle(work, || flat.into()).int().reshape(dims).cast(dtype)
    }

    /// The stream that a model begins with.
    ///
    /// # Shapes
    /// - `weight`: `[own words, dim]`
    /// - `tokens`: `[batch, seq]`, words of the whole vocabulary
    /// - result: the stream
    ///
    /// # Panics
    /// If the rows of the weight are not this rank's words.
    pub fn embed(&self, weight: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
        if !self.peers.several() {
            return embedding(weight, tokens);
        }
        let words = self.words();
        assert_eq!(weight.dims()[0], words.len(), "rows of {words:?}");
        // Words of other ranks are outside of the weight: they give zeros.
        self.leave(embedding(weight, tokens - words.start as i64))
    }
}

/// The lengths of what ranks have of a dim.
fn parts(length: usize, ranks: usize) -> Vec<usize> {
    (0..ranks).map(|rank| shard_range(length, ranks, rank).len()).collect()
}
