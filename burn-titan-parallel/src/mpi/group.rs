//! A group of ranks and its operations under way, as MPI's thread sees it.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use burn::tensor::Bytes;

use super::library::{Comm, Request};
use super::notice::{Notice, WORDS};
use super::transfer::{Channel, Transfer, are_done, is_long};
use crate::host::exchange::Sequence;
use crate::host::{Call, CommError, Peer, Task};
use crate::trace::Trace;

/// Where the result of an operation goes.
pub type Reply = Sender<Result<Bytes, CommError>>;

/// The tag of notices between two ranks.
const NOTICE: i32 = 0;

/// A group of ranks.
pub struct Group {
    ranks: Ranks,
    /// In the order of their calls.
    operations: Vec<Operation>,
    options: GroupOptions,
}

/// What a group is besides its ranks.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// Its name in the trace.
    pub name: String,
    /// Where its operations are recorded.
    pub trace: Trace,
    /// How long an operation waits for its peers.
    pub timeout: Duration,
}

/// Who is in a group, and how they are reached.
struct Ranks {
    /// Carries the notices. They have a communicator of their own: a rank may give its next one before or
    /// after it begins the operation before.
    notices: Comm,
    /// Carries the data.
    data: Channel,
    /// The ranks, by their place.
    peers: Vec<Peer>,
    timeout: Duration,
}

/// An operation under way.
struct Operation {
    call: Call,
    sequence: Sequence,
    reply: Reply,
    notices: Notices,
    /// What is to be done, as long as the ranks have not agreed on it.
    task: Option<Task<Bytes>>,
    /// What MPI does, from then on.
    transfer: Option<Transfer>,
    /// When it was called.
    start: Instant,
    /// Since when it has been waiting for nobody but its peers.
    since: Option<Instant>,
    done: bool,
}

/// Notices under way: what this rank tells all ranks or one, and what they tell it.
#[derive(Debug, Default)]
struct Notices {
    #[expect(dead_code, reason = "MPI reads it")]
    ours: Vec<u64>,
    theirs: Vec<u64>,
    requests: Vec<Request>,
}

impl Group {
    /// A group over two communicators of the same ranks.
    pub fn new(notices: Comm, data: Channel, peers: Vec<Peer>, options: GroupOptions) -> Self {
        let ranks = Ranks { notices, data, peers, timeout: options.timeout };
        Self { ranks, operations: Vec::new(), options }
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.operations.is_empty()
    }

    /// Begins an operation.
    ///
    /// # Errors
    /// What the library reports; `reply` is told too.
    pub fn start(&mut self, call: Call, task: Task<Bytes>, reply: Reply) -> Result<(), CommError> {
        let sequence = Sequence::of(&task);
        let (task, transfer, since, done) = (Some(task), None, None, false);
        let (notices, start) = (Notices::default(), Instant::now());
        let mut operation =
            Operation { call, sequence, reply, notices, task, transfer, start, since, done };
        match self.ranks.announce(&mut operation) {
            Ok(()) => self.operations.push(operation),
            Err(error) => {
                operation.give_up(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets operations go on; whether any of them did.
    ///
    /// # Errors
    /// Of the first operation that fails, which was told.
    pub fn advance(&mut self) -> Result<bool, CommError> {
        let mut moved = false;
        // The sequences of operations before this one, and those of which one has not begun.
        let (mut seen, mut held) = (Vec::new(), Vec::new());
        for (i, operation) in self.operations.iter_mut().enumerate() {
            let sequence = operation.sequence;
            let stepped =
                self.ranks.step(operation, seen.contains(&sequence), held.contains(&sequence));
            match stepped {
                Ok(step) => moved |= step,
                Err(error) => {
                    self.operations.remove(i).give_up(&error);
                    return Err(error);
                }
            }
            seen.push(sequence);
            if operation.task.is_some() {
                held.push(sequence);
            }
        }
        for operation in self.operations.extract_if(.., |operation| operation.done) {
            self.options.record(&operation);
            operation.finish(self.ranks.data.size);
        }
        Ok(moved)
    }

    /// Ends all operations with an error.
    pub fn give_up(&mut self, error: &CommError) {
        self.operations.drain(..).for_each(|operation| operation.give_up(error));
    }
}

impl Ranks {
    /// Tells the peers what this rank is about to do. Whoever sends to a rank does so at once, without an answer.
    fn announce(&self, operation: &mut Operation) -> Result<(), CommError> {
        let Operation { call, notices, task, transfer, .. } = operation;
        let Some(waiting) = task.take() else { return Ok(()) };
        let fails = |cause| CommError::Mpi { cause, call: Some(*call) };
        *notices = self.tell(call, &waiting).map_err(fails)?;
        if matches!(waiting, Task::Send(..)) {
            *transfer = Some(self.data.begin(call, waiting, false).map_err(fails)?);
        } else {
            *task = Some(waiting);
        }
        Ok(())
    }

    fn tell(&self, call: &Call, task: &Task<Bytes>) -> Result<Notices, String> {
        let long = is_long(task, call, self.data.limit);
        let notice = |bytes| Notice { call: *call, bytes, long }.encode();
        let mut ours: Vec<u64> = match task {
            Task::AllToAll(_, send, _) => send.iter().flat_map(|bytes| notice(*bytes)).collect(),
            Task::Send(..) => notice(0).to_vec(),
            Task::Receive(_) => Vec::new(),
            _ => (0..self.data.size).flat_map(|_| notice(0)).collect(),
        };
        let mut theirs = match task {
            Task::Send(..) => Vec::new(),
            Task::Receive(_) => vec![0; WORDS],
            _ => vec![0; ours.len()],
        };
        let (from, into, bytes) = (ours.as_mut_ptr().cast(), theirs.as_mut_ptr().cast(), 8 * WORDS);
        // SAFETY: both are as long as they are said to be, and stay in the operation until it is done.
        let request = unsafe {
            match task {
                Task::Send(_, to) => self.notices.send(from, bytes, *to, NOTICE)?,
                Task::Receive(from) => self.notices.receive(into, bytes, *from, NOTICE)?,
                _ => self.notices.all_to_all_even(&ours, &mut theirs, WORDS)?,
            }
        };
        Ok(Notices { ours, theirs, requests: vec![request] })
    }

    /// Lets an operation go on: one of a sequence that has others before it (`behind`), of which some have not
    /// begun (`held`).
    fn step(&self, operation: &mut Operation, behind: bool, held: bool) -> Result<bool, CommError> {
        let call = operation.call;
        let fails = |cause| CommError::Mpi { cause, call: Some(call) };
        let told = are_done(&mut operation.notices.requests).map_err(fails)?;
        if let Some(transfer) = &mut operation.transfer {
            operation.done = transfer.is_done().map_err(fails)? && told;
            if operation.done {
                return Ok(true);
            }
        } else if told && !held {
            let long = self.check(operation)?;
            if let Some(task) = operation.task.take() {
                operation.transfer = Some(self.data.begin(&call, task, long).map_err(fails)?);
            }
            operation.since = None;
            return Ok(true);
        }
        if behind {
            return Ok(false);
        }
        let since = operation.since.get_or_insert_with(Instant::now);
        if since.elapsed() > self.timeout { Err(self.late(operation)) } else { Ok(false) }
    }

    /// Whether all ranks, or the one that sends, are about to do the same; and whether any of them has buffers
    /// that are too long for one call.
    fn check(&self, operation: &Operation) -> Result<bool, CommError> {
        let Operation { call, task, notices, sequence, .. } = operation;
        let mut long = false;
        for (i, words) in notices.theirs.chunks(WORDS).enumerate() {
            let place = if let Sequence::From(place) = sequence { *place } else { i };
            let peer = &self.peers[place];
            let notice = Notice::decode(words, peer, call)?;
            if notice.call != *call {
                return Err(CommError::Disagree {
                    peer: peer.clone(),
                    rank: self.peers[self.data.rank].rank,
                    ours: Box::new(*call),
                    theirs: Box::new(notice.call),
                });
            }
            if let Some(Task::AllToAll(_, _, receive)) = task
                && receive[place] != notice.bytes
            {
                return Err(CommError::Corrupt {
                    peer: peer.clone(),
                    cause: format!("{} bytes instead of {}", notice.bytes, receive[place]),
                    call: Some(*call),
                });
            }
            long |= notice.long;
        }
        Ok(long)
    }

    fn late(&self, operation: &Operation) -> CommError {
        let (call, after) = (operation.call, self.timeout);
        match operation.sequence {
            Sequence::Collectives => {
                CommError::Unfinished { library: "MPI", call, after, size: self.data.size }
            }
            Sequence::To(peer) | Sequence::From(peer) => {
                CommError::TimedOut { peer: self.peers[peer].clone(), after, call: Some(call) }
            }
        }
    }
}

impl GroupOptions {
    fn record(&self, operation: &Operation) {
        let lane = match operation.sequence {
            Sequence::Collectives => "collective",
            Sequence::To(_) => "send",
            Sequence::From(_) => "receive",
        };
        let lane = format!("{}: {lane}", self.name);
        self.trace.record(&lane, || operation.call.to_string(), operation.start);
    }
}

impl Operation {
    fn finish(self, size: usize) {
        if let Some(transfer) = self.transfer {
            // Nobody may be waiting any more; that is no fault.
            let _ = self.reply.send(Ok(transfer.finish(size)));
        }
    }

    /// The memory is lost: MPI may still be using it, and nothing can stop it.
    fn give_up(self, error: &CommError) {
        let Self { reply, notices, transfer, .. } = self;
        let _ = reply.send(Err(error.clone()));
        std::mem::forget((notices, transfer));
    }
}
