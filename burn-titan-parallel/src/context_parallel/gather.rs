//! Attention over the keys and values of all ranks, gathered (Llama Team, 2024, section 3.3.2).

use burn::tensor::{DType, Tensor};
use burn_titan_kernels::{Attention, Scores, attention, attention_backward};

use super::block::Layout;
use super::{SequenceShards, Visible};
use crate::peers::Peers;

/// The output and the log-sum-exp of this rank's queries.
pub(super) fn forward(
    peers: &Peers,
    [query, key, value]: [Tensor<4>; 3],
    visible: &Visible,
    scores: Scores,
) -> Attention {
    let [key, value] = gathered(peers, &Layout::of(&key), [key, value], visible.shards());
    attention(query, key, value, visible.whole(), scores)
}

/// The gradients of query, key and value, from what the forward returned and the gradient of the output.
pub(super) fn backward(
    peers: &Peers,
    [query, key, value]: [Tensor<4>; 3],
    visible: &Visible,
    scores: Scores,
    forward: &Attention,
    gradient: &Tensor<4>,
) -> [Tensor<4>; 3] {
    let layout = Layout::of(&key);
    let [key, value] = gathered(peers, &layout, [key, value], visible.shards());
    let [d_query, d_key, d_value] = attention_backward(
        query,
        key,
        value,
        visible.whole(),
        scores,
        forward.clone(),
        gradient.clone(),
    );
    let [d_key, d_value] = summed(peers, &layout, [d_key, d_value], visible.shards());
    [d_query, d_key, d_value]
}

/// Keys and values of the whole sequence, in its order.
fn gathered(
    peers: &Peers,
    layout: &Layout,
    own: [Tensor<4>; 2],
    shards: &SequenceShards,
) -> [Tensor<4>; 2] {
    let lengths = lengths(layout, shards);
    let all = peers.begin(|peers| peers.all_gather_floats(layout.message(own), &lengths));
    let all = peers.settle(all, || layout.zeros(shards.seq()));
    let ranks = all.split_with_sizes(lengths, 0).into_iter().enumerate();
    // Each rank's chunk of the head, and from the last rank on, those of the tail.
    let (mut chunks, mut tail) = (vec![], vec![]);
    for (rank, message) in ranks {
        let tokens = shards.length(rank);
        let head = shards.ranges(rank)[0].len();
        let rows = layout.rows(message, tokens);
        chunks.push(rows.clone().slice_dim(1, 0..head));
        tail.push(rows.slice_dim(1, head..tokens));
    }
    chunks.extend(tail.into_iter().rev());
    layout.pair(Tensor::cat(chunks, 1))
}

/// This rank's part of the sum of all ranks' gradients of keys and values, which is taken in f32.
fn summed(
    peers: &Peers,
    layout: &Layout,
    whole: [Tensor<4>; 2],
    shards: &SequenceShards,
) -> [Tensor<4>; 2] {
    let sums = layout.cast(DType::F32);
    let part = |rank: usize| {
        let own = |x: &Tensor<4>| {
            let ranges = shards.ranges(rank).map(|range| x.clone().slice_dim(2, range));
            Tensor::cat(ranges.to_vec(), 2).cast(DType::F32)
        };
        sums.message(whole.each_ref().map(own))
    };
    let all = Tensor::cat((0..peers.size()).map(part).collect(), 0);
    let lengths = lengths(layout, shards);
    let own = peers.begin(|peers| peers.reduce_scatter_sum(all, &lengths));
    let tokens = shards.length(peers.rank());
    let own = peers.settle(own, || sums.zeros(tokens));
    sums.pair(sums.rows(own, tokens)).map(|x| x.cast(layout.dtype))
}

/// Elements of each rank's message.
fn lengths(layout: &Layout, shards: &SequenceShards) -> Vec<usize> {
    (0..shards.ranks()).map(|rank| layout.elements(shards.length(rank))).collect()
}
