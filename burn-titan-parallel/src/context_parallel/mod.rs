//! Context parallelism: every rank holds some tokens of each sequence.
//!
//! - [`SequenceShards`]: which tokens, so that causal attention is the same work for all;
//! - [`Visible`]: what a rank's queries see of everybody's keys, for a micro-batch;
//! - [`ContextParallel::attention`]: attention of a rank's queries over the whole sequence, by one of two methods;
//! - [`ContextParallel::exchanges`]: what that exchanges, for the planner.
//!
//! Everything else in a model works on one token at a time and needs no exchange.

mod block;
mod exchanges;
mod gather;
mod merge;
mod ring;
mod shards;
#[cfg(test)]
mod tests;
mod visible;

use burn::tensor::Tensor;
use burn_titan_kernels::{Attention, Scores, attention, differentiable};

pub use exchanges::{Exchange, Exchanges, Transfer};
pub use shards::{SequenceShards, TooShort};
pub use visible::Visible;

use crate::host::Element;
use crate::peers::Peers;

/// How queries meet the keys of other ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Keys and values go around, and each rank merges what it gets of one block after the other (Liu et al., 2023).
    /// A rank holds two blocks of others at most, and passes one on while it computes with it.
    Ring,
    /// Every rank gathers all keys and values (Llama Team, 2024, section 3.3.2): one large operation in place of many
    /// small ones, with the keys and values of the whole sequence on every rank while it runs.
    AllGather,
}

/// Attention between the ranks that share sequences.
///
/// All of them call it in the same order, with tensors of the same sizes but for the number of tokens. Results are
/// bitwise the same from run to run. An exchange that fails is kept by the [`Peers`]: the result is then worth
/// nothing, as [`Peers::check`] says.
#[derive(Debug, Clone)]
pub struct ContextParallel {
    peers: Peers,
    method: Method,
}

impl ContextParallel {
    /// Attention between these ranks.
    pub fn new(peers: Peers, method: Method) -> Self {
        Self { peers, method }
    }

    /// The ranks that share sequences.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// How queries meet the keys of other ranks.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Attention of this rank's queries over the keys of the whole sequence, differentiable in query, key and value.
    /// A rank alone does what [`burn_titan_kernels::attention`](fn@attention) does, bit for bit.
    ///
    /// # Shapes
    /// - `query`: `[batch, heads, own, head_dim]`, where `own` are the rank's tokens ([`SequenceShards::length`]), in
    ///   the order of [`SequenceShards::positions`]
    /// - `key`, `value`: `[batch, kv_heads, own, head_dim]`, of the query's dtype: f32, f16 or bf16
    /// - `visible`: of this rank, for `batch` sequences
    ///
    /// Returns `[batch, heads, own, head_dim]`, zero where a query sees nothing. Between blocks and between ranks,
    /// outputs and gradients are summed in f32.
    ///
    /// # Panics
    /// If the shapes do not fit together, or `visible` is another rank's or made for another number of ranks.
    pub fn attention(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        visible: &Visible,
        scores: Scores,
    ) -> Tensor<4> {
        let (rank, ranks) = (visible.rank(), visible.shards().ranks());
        assert_eq!((rank, ranks), (self.peers.rank(), self.peers.size()), "rank and ranks");
        if !self.peers.several() {
            return attention(query, key, value, visible.whole(), scores).output;
        }
        differentiable([query, key, value], |inputs| {
            let attention = self.forward(inputs.clone(), visible, scores);
            let output = attention.output.clone();
            let (whole, visible) = (self.clone(), visible.clone());
            let backward =
                move |gradient| whole.backward(inputs, &visible, scores, &attention, &gradient);
            (output, Box::new(backward))
        })
    }

    /// What `rank` exchanges in the forward and the backward of an attention, with keys `[batch, kv_heads, own,
    /// head_dim]` of `element`.
    pub fn exchanges(
        method: Method,
        shards: &SequenceShards,
        rank: usize,
        batch: usize,
        kv_heads: usize,
        head_dim: usize,
        element: Element,
    ) -> Exchanges {
        exchanges::exchanges(method, shards, rank, [batch, kv_heads, head_dim], element)
    }

    fn forward(&self, inputs: [Tensor<4>; 3], visible: &Visible, scores: Scores) -> Attention {
        match self.method {
            Method::Ring => ring::forward(&self.peers, inputs, visible, scores),
            Method::AllGather => gather::forward(&self.peers, inputs, visible, scores),
        }
    }

    fn backward(
        &self,
        inputs: [Tensor<4>; 3],
        visible: &Visible,
        scores: Scores,
        forward: &Attention,
        gradient: &Tensor<4>,
    ) -> [Tensor<4>; 3] {
        let backward = match self.method {
            Method::Ring => ring::backward,
            Method::AllGather => gather::backward,
        };
        backward(&self.peers, inputs, visible, scores, forward, gradient)
    }
}
