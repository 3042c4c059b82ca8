//! The progress threads of a group: operations run in the order they were called, while the caller goes on.
//!
//! Sends and receives between two ranks have threads of their own: a rank that waits for a message must still
//! be able to send one.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use super::call::Call;
use super::error::CommError;
use super::exchange::{Exchange, Numbers, Pending, Sequence, Task};
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
    numbers: Numbers,
}

/// A thread that does one job after the other.
struct Lane {
    /// Its name in a trace.
    name: Arc<str>,
    trace: Trace,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
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
            numbers: Numbers::default(),
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

    /// [`Exchange::barrier`], for which no memory is needed.
    pub fn barrier(&self) -> Pending<()> {
        Exchange::<Vec<u8>>::barrier(self)
    }
}

impl<M: Memory> Exchange<M> for Queue {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn submit(&self, call: Call, task: Task<M>) -> Pending<M> {
        let call = Call { sequence: self.numbers.next(&task), ..call };
        let lane = match Sequence::of(&task) {
            Sequence::Collectives => &self.collectives,
            Sequence::To(_) => &self.sends,
            Sequence::From(_) => &self.receives,
        };
        lane.start(call, task)
    }
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

    fn start<M: Memory>(&self, call: Call, task: Task<M>) -> Pending<M> {
        let (done, result) = mpsc::channel();
        let (name, trace) = (self.name.clone(), self.trace.clone());
        let job: Job = Box::new(move |group| {
            let result = trace.span(&name, || call.to_string(), || run(group, &call, task));
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
        let gone = |_| Err(CommError::Closed("its progress thread has ended".to_string()));
        Pending::new(move || result.recv().unwrap_or_else(gone))
    }
}

/// Does what a task asks for.
fn run<M: Memory>(group: &Group, call: &Call, task: Task<M>) -> Result<M, CommError> {
    let zeroed = |bytes| M::zeroed(bytes, call.element);
    match task {
        Task::AllReduce(mut buffer) => group.all_reduce(call, buffer.bytes_mut()).map(|()| buffer),
        Task::AllGather(buffer, lengths) => {
            let mut all = zeroed(lengths.iter().sum());
            group.all_gather(call, buffer.bytes(), &lengths, all.bytes_mut()).map(|()| all)
        }
        Task::ReduceScatter(buffer, lengths) => {
            let mut own = zeroed(lengths[group.rank()]);
            group.reduce_scatter(call, buffer.bytes(), &lengths, own.bytes_mut()).map(|()| own)
        }
        Task::AllToAll(buffer, send, receive) => {
            let mut all = zeroed(receive.iter().sum());
            let done = group.all_to_all(call, buffer.bytes(), &send, &receive, all.bytes_mut());
            done.map(|()| all)
        }
        Task::Broadcast(buffer) => {
            let own = group.rank() == call.root as usize;
            let mut buffer = if own { buffer } else { zeroed(call.bytes()) };
            group.broadcast(call, buffer.bytes_mut()).map(|()| buffer)
        }
        Task::Send(buffer, to) => group.send_to(call, to, buffer.bytes()).map(|()| zeroed(0)),
        Task::Receive(from) => {
            let mut buffer = zeroed(call.bytes());
            group.receive_from(call, from, buffer.bytes_mut()).map(|()| buffer)
        }
        Task::Barrier => group.barrier(call).map(|()| zeroed(0)),
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
