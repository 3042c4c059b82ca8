//! The ranks that MPI has started, and groups of them, as the threads of a rank see them.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use burn::tensor::Bytes;

use super::engine::{self, Command, Facts, Settings};
use super::error::MpiError;
use super::group::GroupOptions;
use crate::host::beat::{Beat, NoResult};
use crate::host::exchange::Numbers;
use crate::host::{Call, CommError, Exchange, Pending, Task};
use crate::launch::Launch;

/// How ranks wait for each other.
#[derive(Debug, Clone, Copy)]
pub struct MpiConfig {
    /// How long an operation waits for its peers.
    pub timeout: Duration,
    /// How long the ranks wait for each other at the start.
    pub join_timeout: Duration,
    /// Most numbers, or bytes, of one call of MPI, which counts in C integers; longer buffers go piece by
    /// piece. Equal on all ranks.
    pub limit: usize,
}

impl MpiConfig {
    /// The greatest limit: 2^30.
    pub const LIMIT: usize = 1 << 30;
}

/// One rank of the ranks that MPI has started. Clones are the same rank.
#[derive(Debug, Clone)]
pub struct MpiWorld {
    facts: Arc<Facts>,
    thread: Thread,
}

/// The thread that calls MPI.
#[derive(Debug, Clone)]
struct Thread {
    commands: Sender<Command>,
    beat: Beat,
    timeout: Duration,
}

impl MpiWorld {
    /// Starts MPI in this process, which can be done once. Waits for all ranks to do so.
    ///
    /// # Errors
    /// If MPI was started before, or does not start.
    pub fn init(config: MpiConfig) -> Result<Self, MpiError> {
        let MpiConfig { timeout, join_timeout, limit } = config;
        let settings = Settings { timeout, limit: limit.clamp(1, MpiConfig::LIMIT) };
        let (commands, queue) = mpsc::channel();
        let (ready, facts) = mpsc::channel();
        let beat = Beat::new();
        let seen = beat.clone();
        std::thread::Builder::new()
            .name("mpi".to_string())
            .spawn(move || engine::run(settings, &queue, &ready, seen))?;
        let facts = facts.recv_timeout(join_timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => MpiError::NotStarted { after: join_timeout },
            RecvTimeoutError::Disconnected => MpiError::Exchange(ended()),
        })??;
        Ok(Self { facts: Arc::new(facts), thread: Thread { commands, beat, timeout } })
    }

    /// Refuses another rank or size than what the launcher says.
    ///
    /// # Errors
    /// With both.
    pub fn check(&self, launch: &Launch) -> Result<(), MpiError> {
        let (rank, size) = (self.rank(), self.size());
        if (rank, size) == (launch.rank, launch.world_size) {
            return Ok(());
        }
        Err(MpiError::Disagree {
            rank,
            size,
            launch_rank: launch.rank,
            launch_size: launch.world_size,
            source_name: launch.source.clone(),
        })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.facts.rank
    }

    /// Ranks in the world.
    pub fn size(&self) -> usize {
        self.facts.peers.len()
    }

    /// How long an operation waits for its peers, where nothing else is said.
    pub fn timeout(&self) -> Duration {
        self.thread.timeout
    }

    /// The group of these ranks, of which this rank is one. All of them ask for it, with the same `purpose`,
    /// and wait for each other; ranks that are in several groups ask for them in the same order.
    ///
    /// # Errors
    /// If MPI reports an error, or the others do not ask for it in time.
    pub fn group(
        &self,
        purpose: u64,
        members: &[usize],
        options: GroupOptions,
    ) -> Result<MpiGroup, CommError> {
        let none = CommError::NoSuchRank { rank: self.rank(), size: members.len() };
        let rank = members.iter().position(|rank| *rank == self.rank()).ok_or(none)?;
        if let Some(rank) = members.iter().find(|rank| **rank >= self.size()) {
            return Err(CommError::NoSuchRank { rank: *rank, size: self.size() });
        }
        // The standard has tags up to 32767 everywhere.
        let (tag, size) = ((purpose % 32_768) as i32, members.len());
        let (reply, number) = mpsc::channel();
        let thread = Thread { timeout: options.timeout, ..self.thread.clone() };
        thread.tell(Command::Group { members: members.to_vec(), tag, options, reply });
        let number = thread.wait(&number, None)?;
        Ok(MpiGroup { number, rank, size, thread, numbers: Numbers::default() })
    }

    /// Gives up all operations. MPI has no way to tell the other ranks why: where this process ends without
    /// [`MpiWorld::close`], `mpirun` ends theirs; other launchers leave them to their time-outs.
    pub fn abort(&self, reason: &str) {
        self.thread.tell(Command::Abort(reason.to_string()));
    }

    /// Ends MPI, once every rank has called it. Without that, `mpirun` takes the end of a process for a
    /// failure.
    ///
    /// # Errors
    /// If operations are under way or have failed, or not all ranks call it in time.
    pub fn close(&self) -> Result<(), CommError> {
        let (reply, closed) = mpsc::channel();
        self.thread.tell(Command::Close(reply));
        self.thread.wait(&closed, None)
    }
}

impl Thread {
    fn tell(&self, command: Command) {
        // A thread that has ended drops the command, and the reply with it: whoever waits is told.
        let _ = self.commands.send(command);
    }

    fn wait<T>(
        &self,
        result: &Receiver<Result<T, CommError>>,
        call: Option<Call>,
    ) -> Result<T, CommError> {
        self.beat.wait(result, self.timeout).unwrap_or_else(|none| match none {
            NoResult::Ended => Err(ended()),
            NoResult::Stuck => {
                let seconds = self.timeout.as_secs_f64();
                let cause = format!("a call of the library takes longer than {seconds} s");
                Err(CommError::Mpi { cause, call })
            }
        })
    }
}

fn ended() -> CommError {
    CommError::Closed("MPI's thread has ended".to_string())
}

/// A group of ranks; see [`MpiWorld::group`].
#[derive(Debug)]
pub struct MpiGroup {
    number: usize,
    rank: usize,
    size: usize,
    thread: Thread,
    numbers: Numbers,
}

impl Exchange<Bytes> for MpiGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn submit(&self, call: Call, task: Task<Bytes>) -> Pending<Bytes> {
        let call = Call { sequence: self.numbers.next(&task), ..call };
        let (reply, result) = mpsc::channel();
        let thread = self.thread.clone();
        thread.tell(Command::Start { group: self.number, call, task, reply });
        Pending::new(move || thread.wait(&result, Some(call)))
    }
}
