//! Links that count what they carry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::call::Call;
use super::error::{CommError, Peer};
use super::links::{FailureHook, Links};
use super::mailbox::{Failure, Mailbox};

/// Links that count the bytes of payload that they send.
#[derive(Debug)]
pub struct Counted<L> {
    links: L,
    sent: AtomicU64,
}

impl<L> Counted<L> {
    /// Links that have sent nothing yet.
    pub fn new(links: L) -> Self {
        Self { links, sent: AtomicU64::new(0) }
    }

    /// Bytes of payload that were sent to all ranks together.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl<L: Links> Links for Counted<L> {
    fn rank(&self) -> usize {
        self.links.rank()
    }

    fn world_size(&self) -> usize {
        self.links.world_size()
    }

    fn peer(&self, rank: usize) -> Peer {
        self.links.peer(rank)
    }

    fn mailbox(&self) -> &Arc<Mailbox> {
        self.links.mailbox()
    }

    fn send(
        &self,
        to: usize,
        group: u64,
        call: &Call,
        step: u32,
        payload: &[u8],
    ) -> Result<(), Failure> {
        self.sent.fetch_add(payload.len() as u64, Relaxed);
        self.links.send(to, group, call, step, payload)
    }

    fn judge(&self, suspect: usize, failure: Failure) -> (usize, Failure) {
        self.links.judge(suspect, failure)
    }

    fn on_failure(&self, hook: FailureHook) {
        self.links.on_failure(hook);
    }

    fn abort(&self, reason: &str) {
        self.links.abort(reason);
    }

    fn close(&self) -> Result<(), CommError> {
        self.links.close()
    }
}
