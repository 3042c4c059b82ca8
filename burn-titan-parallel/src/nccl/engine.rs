//! NCCL's thread: it makes the communicators and carries out operations, one after the other, in the order in
//! which they were called, whatever their group. NCCL wants one order of all operations of a GPU; ranks that call
//! the operations of several groups in one program's order have one.

use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use burn_titan_kernels::device_memory::DeviceMemory;

use super::library::{Comm, ID, Operands, Stream};
use super::plan::NcclCall;
use crate::host::beat::Beat;
use crate::host::{Call, CommError};

/// How often the stream is asked again at once before the thread pauses between questions.
const EAGER: u32 = 200;
const PAUSE: Duration = Duration::from_micros(20);

/// What the thread is asked to do.
pub enum Command {
    /// Join the group of this number; which one it is here.
    Join { id: [u8; ID], rank: usize, size: usize, reply: Sender<Result<usize, CommError>> },
    /// Carry out an operation.
    Run(Job),
}

/// An operation.
pub struct Job {
    /// Among which ranks.
    pub group: usize,
    /// What it is.
    pub call: Call,
    /// The calls of NCCL.
    pub calls: Vec<NcclCall>,
    /// What is read; it stays until the operation is done.
    pub input: DeviceMemory,
    /// What is written.
    pub output: DeviceMemory,
    /// How long it may take.
    pub timeout: Duration,
    /// Where it is said that it is done.
    pub reply: Sender<Result<(), CommError>>,
}

/// The thread: does what it is told on this GPU until nobody can tell it any more.
pub fn run(
    gpu: usize,
    commands: &Receiver<Command>,
    ready: &Sender<Result<(), CommError>>,
    beat: Beat,
) {
    let stream = match Stream::open(gpu) {
        Ok(stream) => stream,
        Err(cause) => {
            // Whoever does not wait any more has given up already; so also below.
            let _ = ready.send(Err(CommError::Nccl { cause, call: None }));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut engine = Engine { stream, groups: Vec::new(), failure: None, beat };
    for command in commands {
        engine.beat.seen();
        match command {
            Command::Join { id, rank, size, reply } => {
                let _ = reply.send(engine.join(&id, rank, size));
            }
            Command::Run(job) => engine.run(job),
        }
    }
    engine.groups.into_iter().for_each(|(comm, _)| comm.abort());
}

struct Engine {
    stream: Stream,
    /// Communicators and how many ranks they have.
    groups: Vec<(Comm, usize)>,
    /// Why nothing more is done.
    failure: Option<CommError>,
    beat: Beat,
}

impl Engine {
    fn join(&mut self, id: &[u8; ID], rank: usize, size: usize) -> Result<usize, CommError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        let comm =
            Comm::join(id, rank, size).map_err(|cause| CommError::Nccl { cause, call: None })?;
        self.groups.push((comm, size));
        Ok(self.groups.len() - 1)
    }

    fn run(&mut self, job: Job) {
        let done = match &self.failure {
            Some(error) => Err(error.clone()),
            None => self.carry_out(&job),
        };
        if let (Err(error), None) = (&done, &self.failure) {
            self.failure = Some(CommError::Closed(error.to_string()));
            // The kernels of the operation end when their communicators do; only then may its memory be freed.
            self.groups.drain(..).for_each(|(comm, _)| comm.abort());
        }
        let Job { reply, input, output, .. } = job;
        drop((input, output));
        let _ = reply.send(done);
    }

    fn carry_out(&self, job: &Job) -> Result<(), CommError> {
        let call = job.call;
        let fails = |cause| CommError::Nccl { cause, call: Some(call) };
        let (comm, size) = &self.groups[job.group];
        let operands = Operands {
            element: call.element,
            reduction: call.reduction,
            input: job.input.address(),
            output: job.output.address(),
        };
        if job.calls.is_empty() {
            return Ok(());
        }
        // SAFETY: the job holds both memories until this is done, and nobody reads the output or changes the input
        // before its tensors are given back.
        unsafe { comm.begin(&self.stream, &job.calls, &operands).map_err(fails)? };
        let (start, mut asked) = (Instant::now(), 0);
        while !self.stream.is_done().map_err(fails)? {
            self.beat.seen();
            comm.check().map_err(fails)?;
            if start.elapsed() > job.timeout {
                let after = job.timeout;
                return Err(CommError::Unfinished { library: "NCCL", call, after, size: *size });
            }
            asked += 1;
            if asked < EAGER { std::thread::yield_now() } else { std::thread::sleep(PAUSE) }
        }
        Ok(())
    }
}
