//! Ranks as threads of one process.

use std::sync::Arc;

use super::call::Call;
use super::error::Peer;
use super::links::Links;
use super::mailbox::{Failure, Mailbox, Message};
use super::payload::Payload;

/// The links of one rank of a world of threads.
#[derive(Debug, Clone)]
pub struct LocalLinks {
    rank: usize,
    mailboxes: Arc<Vec<Arc<Mailbox>>>,
}

impl LocalLinks {
    /// The links of every rank of a world of `size` ranks.
    pub fn world(size: usize) -> Vec<Self> {
        let mailboxes: Arc<Vec<Arc<Mailbox>>> =
            Arc::new((0..size).map(|_| Arc::default()).collect());
        (0..size).map(|rank| Self { rank, mailboxes: mailboxes.clone() }).collect()
    }
}

impl Links for LocalLinks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.mailboxes.len()
    }

    fn peer(&self, rank: usize) -> Peer {
        Peer { rank, host: "this process".to_string() }
    }

    fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailboxes[self.rank]
    }

    fn send(
        &self,
        to: usize,
        group: u64,
        call: &Call,
        step: u32,
        payload: &[u8],
    ) -> Result<(), Failure> {
        match self.mailboxes[to].closed() {
            Some(reason) => Err(Failure::Gone(reason)),
            None => {
                let payload = Payload::new(payload.to_vec());
                let message = Message { call: *call, step, payload };
                self.mailboxes[to].put(self.rank, group, message);
                Ok(())
            }
        }
    }

    fn abort(&self, reason: &str) {
        let failure = Failure::Gone(reason.to_string());
        for mailbox in self.mailboxes.iter() {
            mailbox.fail(self.rank, failure.clone());
        }
        self.mailbox().close(reason);
    }
}
