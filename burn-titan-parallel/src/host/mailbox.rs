//! Messages that have arrived at a rank and were not taken yet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::call::Call;
use super::payload::Payload;

/// A message as it arrived.
#[derive(Debug, Clone)]
pub struct Message {
    /// The operation it belongs to.
    pub call: Call,
    /// Its place in the operation.
    pub step: u32,
    /// Its bytes.
    pub payload: Payload,
}

/// Why there is no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoMessage {
    /// None came before the deadline.
    TimedOut,
    /// The peer is gone, or sent something broken: why.
    Lost(Failure),
    /// The whole mailbox was closed: why.
    Closed(String),
}

/// What ended the connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The connection broke, or the process ended.
    Gone(String),
    /// Bytes arrived that are no message.
    Damaged(String),
}

/// The queues of one rank: one a peer and group, in the order of arrival.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<(usize, u64), VecDeque<Message>>,
    failed: HashMap<usize, Failure>,
    closed: Option<String>,
}

impl Mailbox {
    /// Adds a message of world rank `from` in `group`.
    pub fn put(&self, from: usize, group: u64, message: Message) {
        self.change(|state| state.queues.entry((from, group)).or_default().push_back(message));
    }

    /// Nothing more will come from `peer`. What has come can still be taken.
    pub fn fail(&self, peer: usize, failure: Failure) {
        self.change(|state| {
            state.failed.entry(peer).or_insert(failure);
        });
    }

    /// Nothing can be taken any more; the first reason stays.
    pub fn close(&self, reason: &str) {
        self.change(|state| {
            state.closed.get_or_insert_with(|| reason.to_string());
        });
    }

    /// Why the mailbox was closed, if it was.
    pub fn closed(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed.clone()
    }

    /// The next message of world rank `from` in `group`; waits for it until `deadline`.
    ///
    /// # Errors
    /// If there will be none, or there is none in time.
    pub fn take(&self, from: usize, group: u64, deadline: Instant) -> Result<Message, NoMessage> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(reason) = &state.closed {
                return Err(NoMessage::Closed(reason.clone()));
            }
            if let Some(message) =
                state.queues.get_mut(&(from, group)).and_then(VecDeque::pop_front)
            {
                return Ok(message);
            }
            if let Some(failure) = state.failed.get(&from) {
                return Err(NoMessage::Lost(failure.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoMessage::TimedOut);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}
