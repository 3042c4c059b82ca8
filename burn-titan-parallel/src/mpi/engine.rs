//! MPI's thread: it starts MPI, makes all calls of the library, and ends it.
//!
//! That needs only `MPI_THREAD_FUNNELED`, which every library has. With `MPI_THREAD_MULTIPLE`, which some are
//! built without, callers could call MPI themselves; but somebody must drive operations along while the callers
//! compute, so there would be such a thread even then, and locks besides.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use ::mpi::Threading;
use ::mpi::environment::Universe;
use burn::tensor::Bytes;

use super::error::MpiError;
use super::group::{Group, GroupOptions, Reply};
use super::library::Comm;
use super::transfer::Channel;
use crate::host::beat::Beat;
use crate::host::{Call, CommError, Peer, Task};

/// How often the library is asked again at once, which takes about a millisecond, before the thread pauses
/// between questions and leaves the core to the computation. With pauses from the 50th question on, 1 MiB took up to
/// three times as long; 16 and 256 MiB take the same either way (Open MPI 4.1, 2 ranks on 2 cores).
const EAGER: u32 = 2000;
const PAUSE: Duration = Duration::from_micros(50);

/// What the thread is asked to do.
pub enum Command {
    /// Make a group of these ranks; its number.
    Group {
        members: Vec<usize>,
        tag: i32,
        options: GroupOptions,
        reply: Sender<Result<usize, CommError>>,
    },
    /// Begin an operation of a group.
    Start { group: usize, call: Call, task: Task<Bytes>, reply: Reply },
    /// Give up, for this reason.
    Abort(String),
    /// End MPI, with all other ranks.
    Close(Sender<Result<(), CommError>>),
}

/// What MPI says about this process.
#[derive(Debug)]
pub struct Facts {
    /// This rank.
    pub rank: usize,
    /// All ranks, in order.
    pub peers: Vec<Peer>,
}

/// How the thread works.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long an operation waits for its peers.
    pub timeout: Duration,
    /// Most numbers, or bytes, of one call.
    pub limit: usize,
}

/// The thread: starts MPI, says what it has found, and does what it is told until nobody can tell it any more.
pub fn run(
    settings: Settings,
    commands: &Receiver<Command>,
    ready: &Sender<Result<Facts, MpiError>>,
    beat: Beat,
) {
    let Some((universe, _)) = ::mpi::initialize_with_threading(Threading::Funneled) else {
        // Whoever does not wait any more has given up already; so also below.
        let _ = ready.send(Err(MpiError::StartedBefore));
        return;
    };
    let facts = facts().map_err(|cause| CommError::Mpi { cause, call: None }.into());
    match facts {
        Ok((world, facts)) => {
            let peers = facts.peers.clone();
            let _ = ready.send(Ok(facts));
            let groups = Vec::new();
            let engine = Engine {
                settings,
                world,
                peers,
                groups,
                failure: None,
                beat,
                universe: Some(universe),
            };
            engine.serve(commands);
        }
        Err(error) => {
            std::mem::forget(universe);
            let _ = ready.send(Err(error));
        }
    }
}

fn facts() -> Result<(Comm, Facts), String> {
    let world = Comm::world()?;
    let (rank, size) = world.place()?;
    let hosts = world.hosts(size)?;
    let peers = hosts.into_iter().enumerate().map(|(rank, host)| Peer { rank, host });
    Ok((world, Facts { rank, peers: peers.collect() }))
}

struct Engine {
    settings: Settings,
    world: Comm,
    peers: Vec<Peer>,
    groups: Vec<Group>,
    /// Why nothing more is begun.
    failure: Option<CommError>,
    beat: Beat,
    /// Ends MPI when it is dropped, which waits for all ranks.
    universe: Option<Universe>,
}

impl Engine {
    fn serve(mut self, commands: &Receiver<Command>) {
        let mut idle = 0;
        while let Ok(command) = self.next(commands, idle) {
            self.beat.seen();
            idle = if command.is_some() { 0 } else { idle + 1 };
            if let Some(command) = command {
                self.obey(command);
            }
            match self.groups.iter_mut().try_fold(false, |moved, g| Ok(moved | g.advance()?)) {
                Ok(true) => idle = 0,
                Ok(false) => {}
                Err(error) => self.fail(&error),
            }
        }
        // Without a `Close` the run has failed somewhere, and the other ranks may never end MPI.
        std::mem::forget(self.universe);
    }

    /// The next command; none while operations are under way and there is no command.
    fn next(&self, commands: &Receiver<Command>, idle: u32) -> Result<Option<Command>, Gone> {
        if self.groups.iter().all(Group::is_idle) {
            return commands.recv().map(Some).map_err(|_| Gone);
        }
        if idle < EAGER {
            match commands.try_recv() {
                Ok(command) => return Ok(Some(command)),
                Err(TryRecvError::Disconnected) => return Err(Gone),
                Err(TryRecvError::Empty) => std::thread::yield_now(),
            }
            return Ok(None);
        }
        match commands.recv_timeout(PAUSE) {
            Ok(command) => Ok(Some(command)),
            Err(RecvTimeoutError::Disconnected) => Err(Gone),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Abort(reason) => self.fail(&CommError::Closed(reason)),
            Command::Start { group, call, task, reply } => {
                if let Some(error) = &self.failure {
                    let _ = reply.send(Err(error.clone()));
                } else if let Err(error) = self.groups[group].start(call, task, reply) {
                    self.fail(&error);
                }
            }
            Command::Group { members, tag, options, reply } => {
                let _ = reply.send(self.group(&members, tag, options));
            }
            Command::Close(reply) => {
                let _ = reply.send(self.close());
            }
        }
    }

    fn group(
        &mut self,
        members: &[usize],
        tag: i32,
        options: GroupOptions,
    ) -> Result<usize, CommError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        let fails = |cause| CommError::Mpi { cause, call: None };
        let notices = self.world.group(members, tag).map_err(fails)?;
        let comm = self.world.group(members, tag).map_err(fails)?;
        let (rank, size) = comm.place().map_err(fails)?;
        let data = Channel { comm, rank, size, limit: self.settings.limit };
        let peers = members.iter().map(|member| self.peers[*member].clone()).collect();
        self.groups.push(Group::new(notices, data, peers, options));
        Ok(self.groups.len() - 1)
    }

    /// Ends MPI once all ranks want that.
    fn close(&mut self) -> Result<(), CommError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        if !self.groups.iter().all(Group::is_idle) {
            return Err(CommError::Closed("operations are still under way".to_string()));
        }
        let fails = |cause| CommError::Mpi { cause, call: None };
        let (start, timeout) = (Instant::now(), self.settings.timeout);
        let mut request = self.world.barrier().map_err(fails)?;
        while !request.is_done().map_err(fails)? {
            self.beat.seen();
            if start.elapsed() > timeout {
                let error = CommError::Mpi {
                    cause: format!("not all ranks ended within {} s", timeout.as_secs_f64()),
                    call: None,
                };
                self.fail(&error);
                return Err(error);
            }
            std::thread::sleep(PAUSE);
        }
        self.fail(&CommError::Closed("MPI was ended".to_string()));
        self.universe = None;
        Ok(())
    }

    /// Gives up everything that is under way, and refuses what comes.
    fn fail(&mut self, error: &CommError) {
        let closed = match error {
            CommError::Closed(_) => error.clone(),
            other => CommError::Closed(other.to_string()),
        };
        self.groups.iter_mut().for_each(|group| group.give_up(&closed));
        self.failure.get_or_insert(closed);
    }
}

/// Nobody is left who could give a command.
struct Gone;
