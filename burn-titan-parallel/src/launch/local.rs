//! `--ranks N`: starts local ranks and stays with them until all have ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::child::{self, End, Order};
use super::error::LaunchError;
use super::output::Output;
use super::own;
use super::place::{HostLaunch, Rendezvous};
use super::slurm::{FIRST_PORT, PORTS};
use super::variables::MOST_RANKS;

/// A peer is lost or did not answer: the fault of another rank.
const PEER_LOST: u8 = 138;

/// Local ranks to start.
#[derive(Debug, Clone)]
pub struct LocalRun {
    /// How many.
    pub ranks: usize,
    /// The first of them in the world.
    pub first_rank: usize,
    /// Ranks in the world.
    pub world_size: usize,
    /// Where rank 0 listens. `None`: on a free port of the loopback address.
    pub rendezvous: Option<Rendezvous>,
    /// What each rank runs.
    pub program: PathBuf,
    /// Its arguments. `--ranks` may be among them: a rank does not start ranks again.
    pub arguments: Vec<OsString>,
    /// Variables besides those of this process and those that say which rank it is.
    pub environment: Vec<(OsString, OsString)>,
    /// How long ranks have to end after SIGTERM, once one has failed.
    pub grace: Duration,
}

impl LocalRun {
    /// The ranks of `host`, each with `arguments`, with 10 s to end once one of them has failed.
    pub fn new(host: &HostLaunch, program: PathBuf, arguments: Vec<OsString>) -> Self {
        Self {
            ranks: host.ranks,
            first_rank: host.first_rank,
            world_size: host.world_size,
            rendezvous: host.rendezvous.clone(),
            program,
            arguments,
            environment: Vec::new(),
            grace: Duration::from_secs(10),
        }
    }
}

/// How a local run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What to exit with: 0, or the code of the rank that failed first, with 128 + n for signal n. If it
    /// was 138, a lost peer, and a local rank failed by itself, that rank's code.
    pub code: u8,
    /// The rank that `code` is from.
    pub rank: Option<usize>,
}

/// Starts ranks of this host and stays until all have ended.
///
/// - Lines of the ranks come out on the same stream with `[rank N]` in front.
/// - SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 go to every rank. A second SIGINT kills them.
/// - When one fails, the others get SIGTERM, and SIGKILL after `grace`.
/// - On Linux the ranks are killed when this process dies, however that happens.
///
/// Must be called outside of any tokio runtime, on a thread that lives as long as the ranks. The signals
/// above stay caught afterwards: this process should have nothing else to do than to exit.
///
/// # Errors
/// If the ranks cannot be started; those that were are then gone.
pub fn run_local(run: &LocalRun) -> Result<Outcome, LaunchError> {
    let fits = run.first_rank.checked_add(run.ranks).is_some_and(|end| end <= run.world_size);
    if run.ranks == 0 || !fits || run.world_size > MOST_RANKS {
        let LocalRun { ranks, first_rank, world_size, .. } = *run;
        return Err(LaunchError::LocalRanks { ranks, first_rank, world_size });
    }
    let common = common_environment(run)?;
    // One thread: the kernel ties the ranks to the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("the event loop"))?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new().map_err(system("catching signals"))?;
        let mut output = Output::new().map_err(system("a thread for output"))?;
        let mut world = World::new(run.grace);
        let started = world.start(run, &common, &mut output);
        if started.is_err() {
            world.stopping = true;
            world.kill();
        }
        world.watch(&mut signals, &mut output).await;
        tokio::select! {
            () = output.finish(run.grace) => {}
            // Nothing is left to wait for but a reader that may never read.
            () = signals.stop() => {}
        }
        started.map(|()| world.outcome())
    });
    runtime.shutdown_background();
    outcome
}

fn system(what: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |error| LaunchError::System { what, error }
}

/// What all ranks are told: the size of the world, the rendezvous, and a secret of this run.
fn common_environment(run: &LocalRun) -> Result<Vec<(&'static str, String)>, LaunchError> {
    let rendezvous = match &run.rendezvous {
        Some(rendezvous) => rendezvous.to_string(),
        None => format!("127.0.0.1:{}", free_port().map_err(system("finding a free port"))?),
    };
    let mut environment = vec![
        (own::WORLD_SIZE, run.world_size.to_string()),
        (own::LOCAL_SIZE, run.ranks.to_string()),
        (own::RENDEZVOUS, rendezvous),
    ];
    // Other hosts could not know a secret that is made here.
    if run.ranks == run.world_size && std::env::var_os(own::TOKEN).is_none() {
        environment.push((own::TOKEN, token().map_err(system("making a random token"))?));
    }
    Ok(environment)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// 128 random bits in hexadecimal.
fn token() -> io::Result<String> {
    Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A port that nobody listens on. Not one that the system gives out: until rank 0 listens, any
/// connection on this host could take such a one.
///
/// # Errors
/// If none is found, or the system has no random numbers.
pub fn free_port() -> io::Result<u16> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..64 {
        let random = u64::from(u16::from_ne_bytes(random()?));
        let port = FIRST_PORT + (random % PORTS) as u16;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The ranks that run.
struct World {
    ranks: JoinSet<(usize, io::Result<End>)>,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    grace: Duration,
    /// The rank that failed first.
    failed: Option<(usize, u8)>,
    /// The first rank that ended by a signal that was forwarded.
    stopped: Option<(usize, u8)>,
    /// SIGINT or SIGTERM was forwarded: ranks that end so have not failed.
    stopping: bool,
    interrupts: usize,
    /// When ranks that have not ended are killed.
    deadline: Option<Instant>,
    killed: bool,
}

impl World {
    fn new(grace: Duration) -> Self {
        Self {
            ranks: JoinSet::new(),
            orders: Vec::new(),
            grace,
            failed: None,
            stopped: None,
            stopping: false,
            interrupts: 0,
            deadline: None,
            killed: false,
        }
    }

    fn start(
        &mut self,
        run: &LocalRun,
        common: &[(&'static str, String)],
        output: &mut Output,
    ) -> Result<(), LaunchError> {
        for local_rank in 0..run.ranks {
            let rank = run.first_rank + local_rank;
            let mut environment = common.to_vec();
            environment.push((own::RANK, rank.to_string()));
            environment.push((own::LOCAL_RANK, local_rank.to_string()));
            let child = child::start(run, &environment, rank, output).map_err(|error| {
                LaunchError::Start { rank, program: run.program.clone(), error }
            })?;
            let (order, waiting) = mpsc::unbounded_channel();
            self.orders.push(order);
            self.ranks.spawn(child::watch(rank, child, waiting));
        }
        Ok(())
    }

    /// Returns when all ranks have ended.
    async fn watch(&mut self, signals: &mut Signals, output: &mut Output) {
        while !self.ranks.is_empty() {
            let deadline = self.deadline;
            let late = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.ranks.join_next() => match ended {
                    Ok((rank, Ok(end))) => self.ended(rank, end, output),
                    Ok((rank, Err(error))) => {
                        output.tell(format!("rank {rank} cannot be watched: {error}"));
                        self.fail(rank, 1);
                    }
                    // Only a fault of this program ends a task so; dropping the others kills the ranks.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                signal = signals.next() => self.forward(signal, output),
                () = late => {
                    let seconds = self.grace.as_secs_f64();
                    output.tell(format!("ranks have not ended within {seconds} s: killed"));
                    self.kill();
                }
            }
        }
    }

    fn ended(&mut self, rank: usize, end: End, output: &mut Output) {
        let code = end.code();
        if code == 0 {
            return;
        }
        if let Some((_, first)) = self.failed {
            // A rank that lost its peer has ended first; this is the peer, and not by our signals.
            let ours = code == PEER_LOST
                || is_stop(code)
                || (self.killed && end == End::Signal(libc::SIGKILL));
            if first == PEER_LOST && !ours {
                output.tell(format!("rank {rank} {end}"));
                self.failed = Some((rank, code));
            }
        } else if self.stopping && (is_stop(code) || self.killed) {
            self.stopped.get_or_insert((rank, code));
        } else {
            let others = if self.ranks.is_empty() { "" } else { "; the other ranks are stopped" };
            output.tell(format!("rank {rank} {end}{others}"));
            self.fail(rank, code);
        }
    }

    fn fail(&mut self, rank: usize, code: u8) {
        self.failed.get_or_insert((rank, code));
        self.order(Order::Signal(libc::SIGTERM));
        self.deadline = Some(Instant::now() + self.grace);
    }

    fn forward(&mut self, signal: i32, output: &mut Output) {
        if signal == libc::SIGINT {
            self.interrupts += 1;
            if self.interrupts > 1 {
                output.tell("interrupted again: the ranks are killed".to_string());
                self.stopping = true;
                return self.kill();
            }
        }
        if [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1].contains(&signal) {
            self.stopping = true;
        }
        self.order(Order::Signal(signal));
    }

    fn kill(&mut self) {
        self.killed = true;
        self.deadline = None;
        self.order(Order::Kill);
    }

    fn order(&self, order: Order) {
        for rank in &self.orders {
            // It may have ended.
            let _ = rank.send(order);
        }
    }

    fn outcome(&self) -> Outcome {
        match self.failed.or(self.stopped) {
            Some((rank, code)) => Outcome { code, rank: Some(rank) },
            None => Outcome { code: 0, rank: None },
        }
    }
}

/// Whether SIGINT or SIGTERM ended a rank, or it says so itself.
fn is_stop(code: u8) -> bool {
    [128 + libc::SIGINT, 128 + libc::SIGTERM].contains(&code.into())
}

/// The signals that are forwarded.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
            _ = self.user1.recv() => libc::SIGUSR1,
            _ = self.user2.recv() => libc::SIGUSR2,
        }
    }

    /// Waits for one that means to end.
    async fn stop(&mut self) {
        while ![libc::SIGINT, libc::SIGTERM, libc::SIGHUP].contains(&self.next().await) {}
    }
}
