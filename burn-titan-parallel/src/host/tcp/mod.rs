//! Ranks as processes: messages over TCP, with rank 0 as the place where they meet.
//!
//! Rank 0 listens where it is told to ([`Listener`]); the others connect to it, prove that they know
//! the run's [`Token`], register, and get the table of all (`rendezvous`). Then every two ranks
//! connect (`mesh`), and messages of buffers go directly between them (`stream`), on one host through shared memory (`lane`, `memory`). The connection
//! to rank 0 stays: over it go signs of life, and the news of who has failed (`control`, `hub`).

mod auth;
mod control;
mod error;
mod hub;
mod lane;
mod listener;
mod memory;
mod mesh;
mod protocol;
mod rendezvous;
mod stream;
#[cfg(test)]
mod tests;
mod throttle;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use auth::{Token, VERSION};
pub use error::{JoinError, Refusal};
pub use listener::Listener;

use super::call::Call;
use super::error::{CommError, Peer};
use super::links::{FailureHook, Links};
use super::mailbox::{Failure, Mailbox, Message};
use super::payload::Payload;
use control::{Line, Shared, ToHub};
use hub::INQUIRY;
use lane::{Inlet, Inlets, Outlet};
use mesh::{Link, Mesh};
use protocol::Entry;
use stream::Sender;
use throttle::Throttle;

/// Where notes about refused strangers and ranks go.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// What a rank must know to join the others.
#[derive(Clone)]
pub struct TcpConfig {
    /// This rank in the world.
    pub rank: usize,
    /// Ranks in the world.
    pub world_size: usize,
    /// This rank's host, as errors name it.
    pub host: String,
    /// The secret of the run.
    pub token: Token,
    /// A rank that gives no sign of life for 0.8 of this is dead; signs are given every fifth of it.
    /// Equal on all ranks, and the time-out of the groups.
    pub timeout: Duration,
    /// How long the ranks wait for each other at the start.
    pub join_timeout: Duration,
    /// Whether buffers go through shared memory to ranks on the same host; sockets carry them otherwise.
    pub shared_memory: bool,
    /// An artificial link, for experiments: bytes that this rank sends in a second, to all peers together. It
    /// shares no memory with them then.
    pub bytes_per_second: Option<f64>,
    /// Where notes about refused strangers and ranks go.
    pub log: Log,
}

impl TcpConfig {
    fn check(&self) -> Result<(), JoinError> {
        let Self { rank, world_size, timeout, bytes_per_second, .. } = self;
        if rank >= world_size {
            return Err(JoinError::Config(format!("rank {rank} of {world_size} ranks")));
        }
        if timeout.is_zero() {
            return Err(JoinError::Config("a time-out of 0 s".to_string()));
        }
        // Of less than a byte a second, the first would take longer than any time-out.
        if let Some(rate) = bytes_per_second.filter(|rate| rate.is_nan() || *rate < 1.0) {
            return Err(JoinError::Config(format!("a link of {rate} bytes a second")));
        }
        Ok(())
    }

    /// Whether memory may be shared with a peer, which must agree.
    fn may_share_memory(&self) -> bool {
        self.shared_memory && self.bytes_per_second.is_none()
    }
}

/// How a rank gets at rank 0: the connections of the rendezvous stay.
enum Ends {
    /// On rank 0: to every other rank, in order.
    Hub(Vec<TcpStream>),
    /// On every other rank.
    Member(TcpStream),
}

/// The links of one rank of a world of processes. Links that are dropped before [`Links::close`] take the
/// other ranks down.
pub struct TcpLinks {
    shared: Arc<Shared>,
    /// By rank; `None` for this one.
    senders: Vec<Option<Arc<Sender>>>,
    /// Ends everything that runs when it is dropped.
    runtime: Option<Runtime>,
}

impl TcpLinks {
    /// Rank 0: waits at `store` for all others, and at `listener` for their messages.
    ///
    /// # Errors
    /// If not all ranks come before the deadline, and which; or if one is lost meanwhile.
    pub fn lead(store: Listener, listener: Listener, config: TcpConfig) -> Result<Self, JoinError> {
        config.check()?;
        if config.rank != 0 {
            return Err(JoinError::Config(format!("rank {} cannot lead", config.rank)));
        }
        let runtime = runtime(&config)?;
        let deadline = Instant::now() + config.join_timeout;
        let (table, mesh, ends) = runtime.block_on(async {
            let entry = Entry { host: config.host.clone(), address: listener.advertised(None) };
            let mesh = Mesh::open(listener, &config)?;
            let (table, streams) = rendezvous::lead(store, &config, entry, deadline).await?;
            Ok((table, mesh, Ends::Hub(streams)))
        })?;
        Self::start(runtime, table, mesh, ends, &config, deadline)
    }

    /// Any other rank: registers with rank 0 at `store` (`host:port`), and waits at `listener` for the
    /// higher ranks.
    ///
    /// # Errors
    /// If rank 0 cannot be reached or refuses this rank, or not all ranks come before the deadline, and
    /// which; or if one is lost meanwhile.
    pub fn join(store: &str, listener: Listener, config: TcpConfig) -> Result<Self, JoinError> {
        config.check()?;
        let runtime = runtime(&config)?;
        let deadline = Instant::now() + config.join_timeout;
        let (table, mesh, ends) = runtime.block_on(async {
            let registered = rendezvous::join(store, &config, &listener, deadline);
            let (table, stream) = registered.await?;
            Ok((table, Mesh::open(listener, &config)?, Ends::Member(stream)))
        })?;
        Self::start(runtime, table, mesh, ends, &config, deadline)
    }

    fn start(
        runtime: Runtime,
        table: Vec<Entry>,
        mesh: Mesh,
        ends: Ends,
        config: &TcpConfig,
        deadline: Instant,
    ) -> Result<Self, JoinError> {
        let guard = runtime.enter();
        let shared = watch(&table, ends, config);
        drop(guard);
        let senders = table.iter().map(|_| None).collect();
        // From here on, a failure tells the others when the links are dropped.
        let mut links = Self { shared: shared.clone(), senders, runtime: None };
        let lost = || shared.is_over();
        let peers = runtime.block_on(mesh.connect(&table, config, deadline, lost));
        let guard = runtime.enter();
        let peers = match peers {
            Ok(peers) => peers,
            Err(error) => {
                shared.give_up(&error.to_string());
                drop(guard);
                links.runtime = Some(runtime);
                return Err(shared.failed().map_or(error, JoinError::Lost));
            }
        };
        let mut inlets: Vec<_> = table.iter().map(|_| None).collect();
        let throttle = config.bytes_per_second.map(|rate| Arc::new(Throttle::new(rate)));
        for (rank, Link { stream, memory }) in peers {
            let (reading, writing) = stream.into_split();
            let (to, from) = memory.unzip();
            links.senders[rank] = Some(Sender::new(writing, to.map(Outlet::new), throttle.clone()));
            let inlet = inlets[rank].insert(Arc::new(Inlet::new(rank, from))).clone();
            tokio::spawn(receive(rank, reading, inlet, shared.clone()));
        }
        shared.mailbox().fetch_from(Arc::new(Inlets(inlets)));
        drop(guard);
        links.runtime = Some(runtime);
        // The others may be slower by some time, for they began later.
        let deadline = deadline + config.timeout;
        shared.ready(deadline.into_std()).map_err(JoinError::Lost)?;
        Ok(links)
    }
}

impl Links for TcpLinks {
    fn rank(&self) -> usize {
        self.shared.rank()
    }

    fn world_size(&self) -> usize {
        self.shared.peers().len()
    }

    fn peer(&self, rank: usize) -> Peer {
        self.shared.peers()[rank].clone()
    }

    fn mailbox(&self) -> &Arc<Mailbox> {
        self.shared.mailbox()
    }

    fn send(
        &self,
        to: usize,
        group: u64,
        call: &Call,
        step: u32,
        payload: &[u8],
    ) -> Result<(), Failure> {
        match &self.senders[to] {
            Some(sender) => sender.send(group, call, step, payload),
            None => {
                let payload = Payload::new(payload.to_vec());
                self.mailbox().put(to, group, Message { call: *call, step, payload });
                Ok(())
            }
        }
    }

    fn judge(&self, suspect: usize, failure: Failure) -> (usize, Failure) {
        self.shared.judge(suspect, failure)
    }

    fn on_failure(&self, hook: FailureHook) {
        self.shared.on_failure(hook);
    }

    fn abort(&self, reason: &str) {
        self.shared.give_up(reason);
    }

    fn close(&self) -> Result<(), CommError> {
        self.shared.leave()
    }
}

impl Drop for TcpLinks {
    fn drop(&mut self) {
        let why = if std::thread::panicking() { "it panicked" } else { "it ended early" };
        self.shared.give_up(why);
        self.shared.linger(INQUIRY);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts the watchdog.
fn watch(table: &[Entry], ends: Ends, config: &TcpConfig) -> Arc<Shared> {
    let named = |(rank, entry): (usize, &Entry)| Peer { rank, host: entry.host.clone() };
    let peers: Vec<Peer> = table.iter().enumerate().map(named).collect();
    let shared = |hub| Shared::new(config.rank, peers, config.timeout, hub);
    let shared = match ends {
        Ends::Member(stream) => {
            let (reading, writing) = stream.into_split();
            let shared = shared(ToHub::There(Line::new(writing)));
            tokio::spawn(control::follow(shared.clone(), reading));
            shared
        }
        Ends::Hub(streams) => {
            let (events, heard) = mpsc::unbounded_channel();
            let mut lines = Vec::new();
            for (rank, stream) in (1..).zip(streams) {
                let (reading, writing) = stream.into_split();
                lines.push(Line::new(writing));
                tokio::spawn(control::overhear(rank, reading, events.clone()));
            }
            let shared = shared(ToHub::Here(events));
            tokio::spawn(control::lead(shared.clone(), heard, lines));
            shared
        }
    };
    tokio::spawn(control::beat(shared.clone()));
    shared
}

/// Receives from a peer until its connection ends.
async fn receive(peer: usize, stream: OwnedReadHalf, inlet: Arc<Inlet>, shared: Arc<Shared>) {
    let failure = stream::receive(stream, &inlet, shared.mailbox()).await;
    shared.suspect(peer, failure.clone());
    shared.mailbox().fail(peer, failure);
}

/// Threads of their own: the training thread may be busy, or hang.
fn runtime(config: &TcpConfig) -> Result<Runtime, JoinError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(format!("tcp-{}", config.rank))
        .enable_all()
        .build()
        .map_err(|error| JoinError::System { what: "threads", cause: error.to_string() })
}
