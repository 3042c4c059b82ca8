//! Operations on buffers of host memory, whoever carries them out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::call::{Call, Kind};
use super::element::{Element, Reduction};
use super::error::CommError;
use super::memory::Memory;

/// What an operation works on. Lengths are in bytes, in the order of ranks.
#[derive(Debug)]
pub enum Task<M> {
    /// Everybody gets the reduction of all buffers.
    AllReduce(M),
    /// Everybody gets all buffers, of these lengths.
    AllGather(M, Vec<usize>),
    /// Everybody gets its range of the reduction; the lengths of the ranges.
    ReduceScatter(M, Vec<usize>),
    /// Everybody gets a range of every buffer; the lengths to send and to receive.
    AllToAll(M, Vec<usize>, Vec<usize>),
    /// Everybody gets the buffer of the call's root; the others' are ignored.
    Broadcast(M),
    /// The rank of this number gets the buffer.
    Send(M, usize),
    /// The buffer that the rank of this number sends.
    Receive(usize),
    /// Done once everybody has called it.
    Barrier,
}

/// An operation under way.
#[must_use = "an operation is done only once it was waited for"]
pub struct Pending<T>(Box<dyn FnOnce() -> Result<T, CommError> + Send>);

impl<T: 'static> Pending<T> {
    /// An operation whose result `wait` waits for.
    pub fn new(wait: impl FnOnce() -> Result<T, CommError> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// Waits for the operation.
    ///
    /// # Errors
    /// As the operation's.
    pub fn wait(self) -> Result<T, CommError> {
        (self.0)()
    }
}

/// A group of ranks that runs operations in the order they were called, while the caller goes on.
///
/// Messages between two ranks have numbers of their own: they are not calls of the whole group, and a rank
/// that waits for one must still be able to send one.
pub trait Exchange<M: Memory>: Send + Sync {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn size(&self) -> usize;

    /// Starts an operation, and gives it its number. The result is empty where the task has none.
    fn submit(&self, call: Call, task: Task<M>) -> Pending<M>;

    /// The reduction of all ranks' buffers, of equal lengths.
    fn all_reduce(&self, buffer: M, element: Element, reduction: Reduction) -> Pending<M> {
        let call = Call { reduction, ..plain(Kind::AllReduce, element, buffer.bytes().len()) };
        self.submit(call, Task::AllReduce(buffer))
    }

    /// The ranks' buffers one after the other, with lengths in elements.
    ///
    /// # Panics
    /// If the buffer has not this rank's length: here, and not on a progress thread, where nobody would see it.
    fn all_gather(&self, buffer: M, lengths: &[usize], element: Element) -> Pending<M> {
        let lengths = in_bytes(lengths, element);
        assert_eq!(buffer.bytes().len(), lengths[self.rank()], "the bytes of this rank's shard");
        let call = with_lengths(Kind::AllGather, element, &lengths);
        self.submit(call, Task::AllGather(buffer, lengths))
    }

    /// This rank's range of the reduction, with lengths in elements.
    ///
    /// # Panics
    /// If the buffer is not as long as all lengths together.
    fn reduce_scatter(
        &self,
        buffer: M,
        lengths: &[usize],
        element: Element,
        reduction: Reduction,
    ) -> Pending<M> {
        let lengths = in_bytes(lengths, element);
        assert_eq!(buffer.bytes().len(), lengths.iter().sum::<usize>(), "the bytes of all ranges");
        let call = Call { reduction, ..with_lengths(Kind::ReduceScatter, element, &lengths) };
        self.submit(call, Task::ReduceScatter(buffer, lengths))
    }

    /// Sends each rank its range of the buffer and returns what the ranks send to this one, in the order of
    /// ranks, with lengths in elements.
    ///
    /// # Panics
    /// If the buffer is not as long as all lengths to send together.
    fn all_to_all(
        &self,
        buffer: M,
        send: &[usize],
        receive: &[usize],
        element: Element,
    ) -> Pending<M> {
        let (send, receive) = (in_bytes(send, element), in_bytes(receive, element));
        assert_eq!(buffer.bytes().len(), send.iter().sum::<usize>(), "the bytes of all ranges");
        // What one rank sends is not what another sends: no count to agree on.
        let call = plain(Kind::AllToAll, element, 0);
        self.submit(call, Task::AllToAll(buffer, send, receive))
    }

    /// The root's buffer of `count` elements, for all; only the root's counts.
    fn broadcast(&self, buffer: M, count: usize, element: Element, root: usize) -> Pending<M> {
        let call = plain(Kind::Broadcast, element, count * element.size());
        self.submit(Call { root: root as u32, ..call }, Task::Broadcast(buffer))
    }

    /// Done once every rank has called it.
    fn barrier(&self) -> Pending<()> {
        nothing(self.submit(plain(Kind::Barrier, Element::U8, 0), Task::Barrier))
    }

    /// Sends a buffer to another rank of the group.
    fn send(&self, buffer: M, element: Element, to: usize) -> Pending<()> {
        let call = plain(Kind::SendReceive, element, buffer.bytes().len());
        nothing(self.submit(Call { root: self.rank() as u32, ..call }, Task::Send(buffer, to)))
    }

    /// The buffer of `elements` elements that another rank of the group sends.
    fn receive(&self, elements: usize, element: Element, from: usize) -> Pending<M> {
        let call = plain(Kind::SendReceive, element, elements * element.size());
        self.submit(Call { root: from as u32, ..call }, Task::Receive(from))
    }
}

/// The numbers of the last operations: those of the group, and those from and to each rank.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<HashMap<Sequence, u64>>);

/// Operations that are numbered together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sequence {
    /// The collectives of a group.
    Collectives,
    /// What is sent to a rank.
    To(usize),
    /// What a rank sends here.
    From(usize),
}

impl Sequence {
    /// Those that a task belongs to.
    pub(crate) fn of<M>(task: &Task<M>) -> Self {
        match task {
            Task::Send(_, to) => Self::To(*to),
            Task::Receive(from) => Self::From(*from),
            _ => Self::Collectives,
        }
    }
}

impl Numbers {
    /// The next number of the task's sequence, from 1.
    pub(crate) fn next<M>(&self, task: &Task<M>) -> u64 {
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = numbers.entry(Sequence::of(task)).or_default();
        *number += 1;
        *number
    }
}

fn nothing<M: Memory>(pending: Pending<M>) -> Pending<()> {
    Pending::new(move || pending.wait().map(drop))
}

fn plain(kind: Kind, element: Element, bytes: usize) -> Call {
    let count = (bytes / element.size()) as u64;
    Call { kind, element, reduction: Reduction::Sum, root: 0, count, shape: 0, sequence: 0 }
}

fn with_lengths(kind: Kind, element: Element, bytes: &[usize]) -> Call {
    Call { shape: Call::digest(bytes), ..plain(kind, element, bytes.iter().sum()) }
}

fn in_bytes(lengths: &[usize], element: Element) -> Vec<usize> {
    lengths.iter().map(|length| length * element.size()).collect()
}
