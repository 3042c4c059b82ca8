//! Messages that have arrived at a rank and were not taken yet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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
    /// A peer is gone, or sent something broken: which, and why.
    Lost(usize, Failure),
    /// The whole mailbox was closed: why.
    Closed(String),
}

/// What ended the connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The connection broke, or the process ended.
    Gone(String),
    /// Bytes arrived that are no message.
    Damaged(String),
    /// Nothing came for so long.
    Late(Duration),
}

/// What a rank does in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    /// The group.
    pub group: u64,
    /// The last operation in it that had to wait for a message.
    pub call: Call,
    /// The world rank that it still waits for.
    pub waits_for: Option<usize>,
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
    /// Who has brought the whole world down.
    culprit: Option<(usize, Failure)>,
    doing: HashMap<u64, Doing>,
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

    /// Nothing can be taken any more from anybody, because of `culprit`; the first one stays.
    pub fn fail_all(&self, culprit: usize, failure: Failure) {
        self.change(|state| {
            state.culprit.get_or_insert((culprit, failure));
        });
    }

    /// What this rank does, in each group that has ever waited.
    pub fn doing(&self) -> Vec<Doing> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.doing.values().copied().collect()
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

    /// The next message of world rank `from` in `group`, for `call`; waits for it until `deadline`.
    ///
    /// # Errors
    /// If there will be none, or there is none in time.
    pub fn take(
        &self,
        from: usize,
        group: u64,
        call: &Call,
        deadline: Instant,
    ) -> Result<Message, NoMessage> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = false;
        loop {
            if let Some(reason) = &state.closed {
                return Err(NoMessage::Closed(reason.clone()));
            }
            if let Some((culprit, failure)) = &state.culprit {
                return Err(NoMessage::Lost(*culprit, failure.clone()));
            }
            if let Some(message) =
                state.queues.get_mut(&(from, group)).and_then(VecDeque::pop_front)
            {
                if waits {
                    state.doing.insert(group, Doing { group, call: *call, waits_for: None });
                }
                return Ok(message);
            }
            if !waits {
                // Stays where the wait fails, so that what the rank waited for can still be seen.
                state.doing.insert(group, Doing { group, call: *call, waits_for: Some(from) });
                waits = true;
            }
            if let Some(failure) = state.failed.get(&from) {
                return Err(NoMessage::Lost(from, failure.clone()));
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
