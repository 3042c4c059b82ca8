//! What a rank exchanges for an attention, known before it runs.

use super::block::message_elements;
use super::{Method, SequenceShards};
use crate::host::{Element, Kind};

/// What a rank exchanges for one attention, in the order in which it begins the operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchanges {
    /// In the forward.
    pub forward: Vec<Exchange>,
    /// In the backward.
    pub backward: Vec<Exchange>,
}

/// An operation of the group, as one rank begins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// What it does, and with whom.
    pub transfer: Transfer,
    /// Elements in all: of the message, or of all ranks' shards.
    pub count: usize,
    /// Their type.
    pub element: Element,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// Sends to this rank of the group.
    Send(usize),
    /// Receives from this rank of the group.
    Receive(usize),
    /// Gathers all ranks' shards, of which the rank's own has so many elements.
    AllGather(usize),
    /// Gets its shard of the sum, of so many elements.
    ReduceScatter(usize),
}

impl Exchange {
    /// The kind of the operation.
    pub fn kind(&self) -> Kind {
        match self.transfer {
            Transfer::Send(_) | Transfer::Receive(_) => Kind::SendReceive,
            Transfer::AllGather(_) => Kind::AllGather,
            Transfer::ReduceScatter(_) => Kind::ReduceScatter,
        }
    }

    /// Bytes of payload that the rank sends in it, in a group of so many ranks.
    pub fn bytes_sent(&self, ranks: usize) -> u64 {
        let elements = match self.transfer {
            Transfer::Send(_) => self.count,
            Transfer::Receive(_) => 0,
            Transfer::AllGather(own) => ranks.saturating_sub(1) * own,
            Transfer::ReduceScatter(own) => self.count - own,
        };
        elements as u64 * self.element.size() as u64
    }
}

impl Exchanges {
    /// Bytes of payload that the rank sends in forward and backward, in a group of so many ranks.
    pub fn bytes_sent(&self, ranks: usize) -> u64 {
        let all = self.forward.iter().chain(&self.backward);
        all.map(|exchange| exchange.bytes_sent(ranks)).sum()
    }
}

/// What `rank` exchanges in a forward and a backward, with keys of these sizes, of `element`.
pub(super) fn exchanges(
    method: Method,
    shards: &SequenceShards,
    rank: usize,
    [batch, kv_heads, head_dim]: [usize; 3],
    element: Element,
) -> Exchanges {
    let ranks = shards.ranks();
    if ranks == 1 {
        return Exchanges { forward: vec![], backward: vec![] };
    }
    let elements = |tokens| message_elements(batch, kv_heads, head_dim, tokens);
    match method {
        Method::Ring => {
            let ring = Ring { rank, ranks, message: |owner| elements(shards.length(owner)) };
            Exchanges { forward: ring.forward(element), backward: ring.backward(element) }
        }
        Method::AllGather => {
            let (own, count) = (elements(shards.length(rank)), elements(shards.seq()));
            let gather = Exchange { transfer: Transfer::AllGather(own), count, element };
            let transfer = Transfer::ReduceScatter(own);
            let reduce = Exchange { transfer, count, element: Element::F32 };
            Exchanges { forward: vec![gather], backward: vec![gather, reduce] }
        }
    }
}

/// What goes around.
struct Ring<F> {
    rank: usize,
    ranks: usize,
    /// Elements of the message about the block of a rank.
    message: F,
}

impl<F: Fn(usize) -> usize> Ring<F> {
    /// Sends what it has at this step.
    fn send(&self, step: usize, element: Element) -> Exchange {
        let transfer = Transfer::Send((self.rank + 1) % self.ranks);
        Exchange { transfer, count: self.count(step), element }
    }

    /// Receives what it has at this step.
    fn receive(&self, step: usize, element: Element) -> Exchange {
        let transfer = Transfer::Receive((self.rank + self.ranks - 1) % self.ranks);
        Exchange { transfer, count: self.count(step), element }
    }

    /// Elements of the message about the block that is here at this step.
    fn count(&self, step: usize) -> usize {
        (self.message)((self.rank + self.ranks - step % self.ranks) % self.ranks)
    }

    /// Every block but the last goes on.
    fn forward(&self, element: Element) -> Vec<Exchange> {
        let step = |step| [self.send(step, element), self.receive(step + 1, element)];
        (0..self.ranks - 1).flat_map(step).collect()
    }

    /// So they do again, and behind each of them its gradient, until it is home.
    fn backward(&self, element: Element) -> Vec<Exchange> {
        let mut all = vec![];
        for step in 0..self.ranks {
            if step > 0 {
                all.push(self.receive(step, Element::F32));
            }
            if step + 1 < self.ranks {
                all.extend([self.send(step, element), self.receive(step + 1, element)]);
            }
            all.push(self.send(step, Element::F32));
        }
        all.push(self.receive(0, Element::F32));
        all
    }
}
