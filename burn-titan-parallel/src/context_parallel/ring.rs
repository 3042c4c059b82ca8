//! Ring attention: blocks of keys and values go around (Liu et al., 2023).
//!
//! At each step a rank computes with the block at hand while it sends it to the next rank and gets another from the
//! one before. In the backward, the f32 gradient of a block follows it one computation later, each rank adds its
//! share, and the last rank sends it home.

use burn::tensor::{DType, Tensor};
use burn_titan_kernels::{Attention, Scores, attention, attention_backward};

use super::Visible;
use super::block::Layout;
use super::merge::Merged;
use crate::communicator::{Buffer, Work};
use crate::peers::Peers;

/// One rank's view of the ring.
struct Ring<'a> {
    peers: &'a Peers,
    visible: &'a Visible,
    /// What it has sent and not waited for.
    sent: Vec<Work<()>>,
}

impl<'a> Ring<'a> {
    fn new(peers: &'a Peers, visible: &'a Visible) -> Self {
        Self { peers, visible, sent: vec![] }
    }

    /// The rank whose block is here at this step: its own at first.
    fn owner(&self, step: usize) -> usize {
        let size = self.peers.size();
        (self.peers.rank() + size - step % size) % size
    }

    /// The tokens of the block that is here at this step.
    fn tokens(&self, step: usize) -> usize {
        self.visible.shards().length(self.owner(step))
    }

    /// Whether there is another block after that of this step.
    fn more(&self, step: usize) -> bool {
        step + 1 < self.peers.size()
    }

    /// Begins to send a message to the next rank.
    fn send(&mut self, message: Tensor<1>) {
        let next = (self.peers.rank() + 1) % self.peers.size();
        let sent = self.peers.begin(|peers| peers.send(message.into(), next));
        self.sent.push(sent);
    }

    /// Begins to receive, from the rank before, the message about the block of this step.
    fn receive(&self, layout: &Layout, step: usize) -> Arriving {
        let (layout, tokens) = (layout.clone(), self.tokens(step));
        let like = Tensor::<1>::empty([layout.elements(tokens)], (&layout.device, layout.dtype));
        let work = self.peers.begin(|peers| peers.receive(like.into(), self.owner(1)));
        Arriving { work: work.map(Buffer::float), layout, tokens }
    }

    /// Waits for all that was sent.
    fn finish(self) {
        for sent in self.sent {
            self.peers.settle(sent, || ());
        }
    }
}

/// A message that is on its way here.
struct Arriving {
    work: Work<Tensor<1>>,
    layout: Layout,
    tokens: usize,
}

impl Arriving {
    fn wait(self, peers: &Peers) -> Tensor<1> {
        peers.settle(self.work, || self.layout.zeros(self.tokens))
    }
}

/// The output and the log-sum-exp of this rank's queries.
pub(super) fn forward(
    peers: &Peers,
    [query, key, value]: [Tensor<4>; 3],
    visible: &Visible,
    scores: Scores,
) -> Attention {
    let mut ring = Ring::new(peers, visible);
    let layout = Layout::of(&key);
    let mut block = layout.message([key, value]);
    let mut merged = Merged::default();
    for step in 0..peers.size() {
        let next = ring.more(step).then(|| {
            ring.send(block.clone());
            ring.receive(&layout, step + 1)
        });
        if let Some(mask) = visible.keys_of(ring.owner(step)) {
            let [key, value] = layout.pair(layout.rows(block, ring.tokens(step)));
            merged.add(attention(query.clone(), key, value, mask, scores));
        }
        match next {
            Some(next) => block = next.wait(peers),
            None => break,
        }
    }
    ring.finish();
    merged.finish(&query)
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
    let mut ring = Ring::new(peers, visible);
    let layout = Layout::of(&key);
    let sums = layout.cast(DType::F32);
    let mut block = layout.message([key, value]);
    let mut d_query = Tensor::zeros(query.dims(), (&layout.device, DType::F32));
    for step in 0..peers.size() {
        // What the ranks before have summed. Its sender computes as this rank does, so it comes before the next block.
        let others = (step > 0).then(|| ring.receive(&sums, step));
        let next = ring.more(step).then(|| {
            ring.send(block.clone());
            ring.receive(&layout, step + 1)
        });
        let own = visible.keys_of(ring.owner(step)).map(|mask| {
            let [key, value] = layout.pair(layout.rows(block, ring.tokens(step)));
            let [dq, dk, dv] = attention_backward(
                query.clone(),
                key,
                value,
                mask,
                scores,
                forward.clone(),
                gradient.clone(),
            );
            d_query = d_query.clone() + dq.cast(DType::F32);
            sums.message([dk, dv].map(|x| x.cast(DType::F32)))
        });
        let others = others.map(|others| others.wait(peers));
        ring.send(match (others, own) {
            (Some(others), Some(own)) => others + own,
            (others, own) => others.or(own).unwrap_or_else(|| sums.zeros(ring.tokens(step))),
        });
        match next {
            Some(next) => block = next.wait(peers),
            None => break,
        }
    }
    let home = ring.receive(&sums, 0).wait(peers);
    let [d_key, d_value] = sums.pair(sums.rows(home, ring.tokens(0)));
    ring.finish();
    [d_query, d_key, d_value].map(|x| x.cast(layout.dtype))
}
