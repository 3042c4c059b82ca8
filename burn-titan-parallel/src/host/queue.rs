//! The progress threads of a group: operations run in the order they were called, while the caller goes on.
//!
//! Sends and receives between two ranks have threads, and numbers, of their own: they are not calls of the
//! whole group, and a rank that waits for a message must still be able to send one.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::call::{Call, Kind};
use super::element::{Element, Reduction};
use super::error::CommError;
use super::group::Group;
use super::memory::Memory;
use crate::trace::Trace;

type Job = Box<dyn FnOnce(&Group) + Send>;

/// A group with threads of its own.
pub struct Queue {
    rank: usize,
    size: usize,
    collectives: Lane,
    sends: Lane,
    receives: Lane,
    numbers: Mutex<Numbers>,
}

/// A thread that does one job after the other.
struct Lane {
    /// Its name in a trace.
    name: Arc<str>,
    trace: Trace,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// The numbers of the last operations.
#[derive(Default)]
struct Numbers {
    collective: u64,
    sent_to: HashMap<usize, u64>,
    received_from: HashMap<usize, u64>,
}

/// An operation under way.
#[must_use = "an operation is done only once it was waited for"]
pub struct Pending<T>(Receiver<Result<T, CommError>>);

impl<T> Pending<T> {
    /// Waits for the operation.
    ///
    /// # Errors
    /// As the operation's.
    pub fn wait(self) -> Result<T, CommError> {
        let gone = |_| Err(CommError::Closed("its progress thread has ended".to_string()));
        self.0.recv().unwrap_or_else(gone)
    }
}

impl Queue {
    /// Starts the progress threads of a group.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn new(group: Group) -> std::io::Result<Self> {
        Self::traced(group, "group", Trace::default())
    }

    /// As [`Queue::new`]; operations are recorded as of the group `name`.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn traced(group: Group, name: &str, trace: Trace) -> std::io::Result<Self> {
        let pairs = group.for_pairs();
        let lane = |kind: &str, group| Lane::new(kind, name, group, trace.clone());
        Ok(Self {
            rank: group.rank(),
            size: group.size(),
            collectives: lane("collective", group)?,
            sends: lane("send", pairs.clone())?,
            receives: lane("receive", pairs)?,
            numbers: Mutex::default(),
        })
    }

    /// This rank's place in the group.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.size
    }

    /// [`Group::all_reduce`].
    pub fn all_reduce<M: Memory>(
        &self,
        mut buffer: M,
        element: Element,
        reduction: Reduction,
    ) -> Pending<M> {
        let call = plain(Kind::AllReduce, element, buffer.bytes().len());
        let call = Call { reduction, ..call };
        self.start(call, move |group, call| {
            group.all_reduce(call, buffer.bytes_mut()).map(|()| buffer)
        })
    }

    /// [`Group::all_gather`], with lengths in elements.
    ///
    /// # Panics
    /// If the buffer has not this rank's length: here, and not on the progress thread, where nobody would see it.
    pub fn all_gather<M: Memory>(
        &self,
        buffer: M,
        lengths: &[usize],
        element: Element,
    ) -> Pending<M> {
        let lengths = in_bytes(lengths, element);
        assert_eq!(buffer.bytes().len(), lengths[self.rank], "the bytes of this rank's shard");
        let call = with_lengths(Kind::AllGather, element, &lengths);
        self.start(call, move |group, call| {
            let mut all = M::zeroed(lengths.iter().sum(), element);
            group.all_gather(call, buffer.bytes(), &lengths, all.bytes_mut())?;
            Ok(all)
        })
    }

    /// [`Group::reduce_scatter`], with lengths in elements.
    ///
    /// # Panics
    /// If the buffer is not as long as all lengths together.
    pub fn reduce_scatter<M: Memory>(
        &self,
        buffer: M,
        lengths: &[usize],
        element: Element,
        reduction: Reduction,
    ) -> Pending<M> {
        let lengths = in_bytes(lengths, element);
        assert_eq!(buffer.bytes().len(), lengths.iter().sum::<usize>(), "the bytes of all ranges");
        let call = Call { reduction, ..with_lengths(Kind::ReduceScatter, element, &lengths) };
        self.start(call, move |group, call| {
            let mut own = M::zeroed(lengths[group.rank()], element);
            group.reduce_scatter(call, buffer.bytes(), &lengths, own.bytes_mut())?;
            Ok(own)
        })
    }

    /// [`Group::all_to_all`], with lengths in elements.
    ///
    /// # Panics
    /// If the buffer is not as long as all lengths to send together.
    pub fn all_to_all<M: Memory>(
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
        self.start(call, move |group, call| {
            let mut all = M::zeroed(receive.iter().sum(), element);
            group.all_to_all(call, buffer.bytes(), &send, &receive, all.bytes_mut())?;
            Ok(all)
        })
    }

    /// [`Group::broadcast`] of `count` elements; only the root's buffer counts.
    pub fn broadcast<M: Memory>(
        &self,
        buffer: M,
        count: usize,
        element: Element,
        root: usize,
    ) -> Pending<M> {
        let bytes = count * element.size();
        let call = Call { root: root as u32, ..plain(Kind::Broadcast, element, bytes) };
        self.start(call, move |group, call| {
            let mut buffer = if group.rank() == root { buffer } else { M::zeroed(bytes, element) };
            group.broadcast(call, buffer.bytes_mut()).map(|()| buffer)
        })
    }

    /// [`Group::barrier`].
    pub fn barrier(&self) -> Pending<()> {
        self.start(plain(Kind::Barrier, Element::U8, 0), |group, call| group.barrier(call))
    }

    /// [`Group::send_to`].
    pub fn send<M: Memory>(&self, buffer: M, element: Element, to: usize) -> Pending<()> {
        let bytes = buffer.bytes().len();
        let call = Call { root: self.rank as u32, ..plain(Kind::SendReceive, element, bytes) };
        let sequence = count(self.numbers().sent_to.entry(to).or_default());
        let call = Call { sequence, ..call };
        self.sends.start(call, move |group, call| group.send_to(call, to, buffer.bytes()))
    }

    /// [`Group::receive_from`] of `elements` elements.
    pub fn receive<M: Memory>(&self, elements: usize, element: Element, from: usize) -> Pending<M> {
        let bytes = elements * element.size();
        let call = Call { root: from as u32, ..plain(Kind::SendReceive, element, bytes) };
        let sequence = count(self.numbers().received_from.entry(from).or_default());
        let call = Call { sequence, ..call };
        self.receives.start(call, move |group, call| {
            let mut buffer = M::zeroed(bytes, element);
            group.receive_from(call, from, buffer.bytes_mut()).map(|()| buffer)
        })
    }

    fn start<T: Send + 'static>(
        &self,
        call: Call,
        run: impl FnOnce(&Group, &Call) -> Result<T, CommError> + Send + 'static,
    ) -> Pending<T> {
        let sequence = count(&mut self.numbers().collective);
        self.collectives.start(Call { sequence, ..call }, run)
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next number, from 1.
fn count(number: &mut u64) -> u64 {
    *number += 1;
    *number
}

impl Lane {
    fn new(kind: &str, name: &str, group: Group, trace: Trace) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name(format!("{kind}-{}", group.links().rank()))
            .spawn(move || queue.into_iter().for_each(|job| job(&group)))?;
        let name = format!("{name}: {kind}").into();
        Ok(Self { name, trace, jobs: Some(jobs), thread: Some(thread) })
    }

    fn start<T: Send + 'static>(
        &self,
        call: Call,
        run: impl FnOnce(&Group, &Call) -> Result<T, CommError> + Send + 'static,
    ) -> Pending<T> {
        let (done, pending) = mpsc::channel();
        let (name, trace) = (self.name.clone(), self.trace.clone());
        let job: Job = Box::new(move |group| {
            let result = trace.span(&name, || call.to_string(), || run(group, &call));
            if let Err(error) = &result {
                // Peers must not wait for a rank that has given up.
                group.links().abort(&error.to_string());
            }
            // Nobody may be waiting any more; that is no fault.
            let _ = done.send(result);
        });
        if let Some(jobs) = &self.jobs {
            // A thread that has ended drops the job, and with it `done`: `wait` says so.
            let _ = jobs.send(job);
        }
        Pending(pending)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
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
