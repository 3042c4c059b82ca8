//! Messages that have arrived at a rank and were not taken yet.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::call::Call;
use super::payload::Payload;

/// A message as it arrived.
#[derive(Debug)]
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

/// Where messages lie that nobody has brought to the mailbox.
pub trait Source: fmt::Debug + Send + Sync {
    /// Whether messages of this peer must be fetched.
    fn covers(&self, from: usize) -> bool;

    /// Puts what has arrived from a peer into the mailbox.
    fn fetch(&self, from: usize, mailbox: &Mailbox);

    /// Nobody will fetch: from now on, until something has come, the peer has it brought.
    fn rest(&self, from: usize);

    /// Whether the peer still knows that nobody fetches.
    fn rests(&self, from: usize) -> bool;
}

/// How long a thread looks for a message by itself before it sleeps: some times what it takes to be woken.
const LOOK: Duration = Duration::from_micros(200);

/// The queues of one rank: one a peer and group, in the order of arrival.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
    source: OnceLock<Arc<dyn Source>>,
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

    /// Everybody who waits looks again: a peer that was asked to bring its next message has done it.
    pub fn wake(&self) {
        self.change(|_| ());
    }

    /// Sets where messages must be fetched; once.
    pub fn fetch_from(&self, source: Arc<dyn Source>) {
        // A second source would be a mistake of this crate, and the first one goes on to work.
        let _ = self.source.set(source);
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
        let state = self.lock();
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
        self.lock().closed.clone()
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
        let source = self.source.get().filter(|source| source.covers(from));
        let mut looks_until = source.map(|_| Instant::now() + LOOK);
        let mut waits = false;
        loop {
            // A message that comes after this is not missed: it is looked for again, or brought.
            if let Some(source) = source {
                if looks_until.is_none() {
                    source.rest(from);
                }
                source.fetch(from, self);
            }
            let mut state = self.lock();
            if let Some(found) = state.find(from, group)? {
                if waits {
                    state.doing.insert(group, Doing { group, call: *call, waits_for: None });
                }
                return Ok(found);
            }
            if !waits {
                // Stays where the wait fails, so that what the rank waited for can still be seen.
                state.doing.insert(group, Doing { group, call: *call, waits_for: Some(from) });
                waits = true;
            }
            if let Some(failure) = state.failed.get(&from) {
                return Err(NoMessage::Lost(from, failure.clone()));
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(NoMessage::TimedOut);
            }
            match looks_until {
                Some(until) => {
                    drop(state);
                    if now >= until {
                        looks_until = None;
                    }
                    // The peer may need this processor to send anything.
                    std::thread::yield_now();
                }
                // The peer has told of a message that was fetched here meanwhile, and would not tell of the next.
                None if source.is_some_and(|source| !source.rests(from)) => {}
                None => {
                    let waited = self.changed.wait_timeout(state, deadline - now);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.lock());
        self.changed.notify_all();
    }
}

impl State {
    /// The next message of a peer in a group, if it is there and may be taken.
    fn find(&mut self, from: usize, group: u64) -> Result<Option<Message>, NoMessage> {
        if let Some(reason) = &self.closed {
            return Err(NoMessage::Closed(reason.clone()));
        }
        if let Some((culprit, failure)) = &self.culprit {
            return Err(NoMessage::Lost(*culprit, failure.clone()));
        }
        Ok(self.queues.get_mut(&(from, group)).and_then(VecDeque::pop_front))
    }
}
