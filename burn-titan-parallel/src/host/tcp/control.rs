//! The watchdog: every rank's connection to rank 0, its signs of life, and the end of it all.
//!
//! Runs on the transport's own threads, so that it works while the training thread computes or hangs.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::super::error::{CommError, Peer};
use super::super::links::FailureHook;
use super::super::mailbox::{Failure, Mailbox};
use super::hub::{Heard, Hub, INQUIRY, no_sign_of_life};
use super::protocol::{self, Control, Status};

/// The sending half of a control connection.
pub struct Line {
    stream: OwnedWriteHalf,
    broken: Mutex<bool>,
}

impl Line {
    /// The line over this half, which has been written to before.
    pub fn new(stream: OwnedWriteHalf) -> Self {
        Self { stream, broken: Mutex::new(false) }
    }

    /// Gives the message to the system at once. A system that does not take so few bytes has a peer that
    /// has long stopped to read: such a line is broken, and the silence on it will be noticed.
    fn say(&self, control: &Control) {
        let mut broken = lock(&self.broken);
        let bytes = protocol::encode(control);
        if !*broken {
            *broken = self.stream.try_write(&bytes).ok() != Some(bytes.len());
        }
    }
}

/// How a rank speaks to the hub.
pub enum ToHub {
    /// Rank 0 itself.
    Here(UnboundedSender<(usize, Heard)>),
    /// Every other rank.
    There(Line),
}

/// How far a rank has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Phase {
    Joining,
    Running,
    /// This rank has said goodbye.
    Leaving,
    /// All have.
    Ended,
}

struct Life {
    phase: Phase,
    verdict: Option<(usize, Failure)>,
    hook: Option<FailureHook>,
    /// On rank 0: nobody is left that must be told anything.
    alone: bool,
}

/// What the threads of one rank share.
pub struct Shared {
    rank: usize,
    peers: Vec<Peer>,
    mailbox: Arc<Mailbox>,
    timeout: Duration,
    hub: ToHub,
    life: Mutex<Life>,
    changed: Condvar,
}

impl Shared {
    /// A rank that is joining.
    pub fn new(rank: usize, peers: Vec<Peer>, timeout: Duration, hub: ToHub) -> Arc<Self> {
        let life = Life { phase: Phase::Joining, verdict: None, hook: None, alone: false };
        Arc::new(Self {
            rank,
            peers,
            mailbox: Arc::default(),
            timeout,
            hub,
            life: Mutex::new(life),
            changed: Condvar::new(),
        })
    }

    /// This rank in the world.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Every rank of the world.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// What has arrived here.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Sets what is called when the world has failed; at once, if it has.
    pub fn on_failure(&self, hook: FailureHook) {
        lock(&self.life).hook = Some(hook);
        self.call_hook();
    }

    /// What has ended the world, if it has failed.
    pub fn failed(&self) -> Option<CommError> {
        let (culprit, failure) = lock(&self.life).verdict.clone()?;
        let doing = self.mailbox.doing();
        let call = doing.iter().find(|doing| doing.waits_for.is_some()).map(|doing| doing.call);
        Some(CommError::of(self.peers[culprit].clone(), failure, call))
    }

    /// Tells the hub that a connection to a peer has failed.
    pub fn suspect(&self, peer: usize, failure: Failure) {
        if !self.is_over() {
            self.say(Control::Suspect { peer, failure });
        }
    }

    /// Asks the hub who is to blame.
    pub fn judge(&self, suspect: usize, failure: Failure) -> (usize, Failure) {
        self.suspect(suspect, failure.clone());
        // The hub's own time for it, and some for the way.
        let patience = INQUIRY.mul_f64(1.5);
        let verdict = |shared: &Self, at_most| {
            let over = |life: &Life| life.verdict.is_some() || life.phase == Phase::Ended;
            shared.wait(at_most, over).verdict.clone()
        };
        if verdict(self, patience).is_none() && self.rank != 0 {
            // A hub that lives always answers.
            self.condemn(0, no_sign_of_life(patience));
        }
        verdict(self, Duration::ZERO).unwrap_or((suspect, failure))
    }

    /// Gives up, so that all others do. Returns once rank 0 knows.
    pub fn give_up(&self, reason: &str) {
        if !self.is_over() {
            self.say(Control::GaveUp(reason.to_string()));
            drop(self.wait(INQUIRY, |life| life.verdict.is_some()));
        }
    }

    /// Says that this rank is connected with all, and waits until all are.
    ///
    /// # Errors
    /// If a rank is lost, or not ready at the deadline.
    pub fn ready(&self, deadline: Instant) -> Result<(), CommError> {
        self.say(Control::Ready);
        self.reach(Phase::Running, deadline)
    }

    /// Says goodbye, and waits until all have. Rank 0 stays until the others know that: what it leaves unread or
    /// unsent when its process ends would break their connections.
    ///
    /// # Errors
    /// If a rank is lost, or has not said goodbye within the time-out.
    pub fn leave(&self) -> Result<(), CommError> {
        let leaves = {
            let mut life = lock(&self.life);
            let leaves = life.phase == Phase::Running && life.verdict.is_none();
            if leaves {
                life.phase = Phase::Leaving;
            }
            leaves
        };
        if leaves {
            self.say(Control::Goodbye);
        }
        self.reach(Phase::Ended, Instant::now() + self.timeout)?;
        self.linger(self.timeout);
        Ok(())
    }

    /// On rank 0: gives the others the time to hear what was said last.
    pub fn linger(&self, at_most: Duration) {
        if self.rank == 0 {
            drop(self.wait(at_most, |life| life.alone));
        }
    }

    /// Whether nothing can be exchanged any more.
    pub fn is_over(&self) -> bool {
        let life = lock(&self.life);
        life.verdict.is_some() || life.phase == Phase::Ended
    }

    /// Waits until all ranks are so far.
    fn reach(&self, phase: Phase, deadline: Instant) -> Result<(), CommError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let decided = |life: &Life| life.verdict.is_some() || life.phase >= phase;
        if !decided(&self.wait(left, decided)) {
            // The hub knows who is behind.
            self.say(Control::Overdue(left));
        }
        let reached = self.wait(INQUIRY, decided).phase >= phase;
        match self.failed() {
            Some(error) => Err(error),
            None if reached => Ok(()),
            None => Err(CommError::Closed(format!("rank 0 did not answer for {left:.1?}"))),
        }
    }

    fn say(&self, control: Control) {
        match &self.hub {
            // A hub that has ended with the runtime needs to hear nothing.
            ToHub::Here(events) => drop(events.send((0, Heard::Said(control)))),
            ToHub::There(line) => line.say(&control),
        }
    }

    fn beat(&self, answers: u64) {
        let status = self.mailbox.doing().into_iter().map(|doing| Status {
            group: doing.group,
            sequence: doing.call.sequence,
            operation: doing.call.to_string(),
            waits_for: doing.waits_for,
        });
        self.say(Control::Beat { doing: status.collect(), answers });
    }

    fn hear(&self, control: Control) {
        match control {
            Control::Ask(number) => self.beat(number),
            Control::Go => self.advance(Phase::Running),
            Control::Farewell => {
                self.say(Control::Goodbye);
                self.advance(Phase::Ended);
            }
            Control::Verdict(culprit, failure) if culprit < self.peers.len() => {
                self.condemn(culprit, failure);
            }
            // The sign of life is that something was said.
            _ => {}
        }
    }

    fn advance(&self, phase: Phase) {
        lock(&self.life).phase = phase;
        self.changed.notify_all();
    }

    /// Ends the world because of a rank, unless it has ended before.
    fn condemn(&self, culprit: usize, failure: Failure) {
        let mut life = lock(&self.life);
        if life.verdict.is_some() || life.phase == Phase::Ended {
            return;
        }
        life.verdict = Some((culprit, failure.clone()));
        drop(life);
        self.mailbox.fail_all(culprit, failure);
        self.changed.notify_all();
        self.call_hook();
    }

    /// The hook may take its time, so it has a thread of its own.
    fn call_hook(&self) {
        let Some(error) = self.failed() else { return };
        if let Some(hook) = lock(&self.life).hook.take() {
            let thread = std::thread::Builder::new().name("comm-failed".to_string());
            // Without a thread there is still the error of every operation.
            let _ = thread.spawn(move || hook(&error));
        }
    }

    fn wait(&self, at_most: Duration, until: impl Fn(&Life) -> bool) -> MutexGuard<'_, Life> {
        let life = lock(&self.life);
        let waited = self.changed.wait_timeout_while(life, at_most, |life| !until(life));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// How long a rank may be silent.
    fn silence(&self) -> Duration {
        self.timeout.mul_f64(0.8)
    }

    fn interval(&self) -> Duration {
        self.timeout / 5
    }
}

/// Gives signs of life to the hub.
pub async fn beat(shared: Arc<Shared>) {
    while !shared.is_over() {
        shared.beat(0);
        tokio::time::sleep(shared.interval()).await;
    }
}

/// Listens to the hub, on any rank but 0.
pub async fn follow(shared: Arc<Shared>, mut stream: OwnedReadHalf) {
    loop {
        match tokio::time::timeout(shared.silence(), protocol::read(&mut stream)).await {
            Ok(Ok(control)) => shared.hear(control),
            Ok(Err(error)) => {
                let failure = protocol::failure(&error);
                // Where only one direction is damaged, the others can still be told.
                shared.suspect(0, failure.clone());
                return shared.condemn(0, failure);
            }
            Err(_) => return shared.condemn(0, no_sign_of_life(shared.silence())),
        }
    }
}

/// Hands what a rank says to the hub.
pub async fn overhear(
    rank: usize,
    mut stream: OwnedReadHalf,
    events: UnboundedSender<(usize, Heard)>,
) {
    loop {
        let heard = match protocol::read(&mut stream).await {
            Ok(control) => Heard::Said(control),
            Err(error) => Heard::Ended(protocol::failure(&error)),
        };
        let ended = matches!(heard, Heard::Ended(_));
        if events.send((rank, heard)).is_err() || ended {
            return;
        }
    }
}

/// The hub, on rank 0: `lines` lead to the ranks from 1.
pub async fn lead(
    shared: Arc<Shared>,
    mut events: UnboundedReceiver<(usize, Heard)>,
    lines: Vec<Line>,
) {
    let mut hub = Hub::new(shared.peers.len(), shared.silence(), Instant::now());
    let every = shared.interval() / 4;
    let (mut ticked, mut beaten) = (Instant::now(), Instant::now());
    loop {
        let event = tokio::time::timeout_at((ticked + every).into(), events.recv()).await;
        let now = Instant::now();
        let mut said = Vec::new();
        match event {
            Ok(Some((rank, heard))) => said.extend(hub.hear(rank, heard, now)),
            Ok(None) => return,
            Err(_) => {}
        }
        if now >= ticked + every {
            said.extend(hub.tick(now, now - ticked > shared.interval()));
            ticked = now;
        }
        if now >= beaten + shared.interval() {
            said.push(Control::Beat { doing: Vec::new(), answers: 0 });
            beaten = now;
        }
        for control in said {
            // The others first: this process may end once it knows.
            lines.iter().for_each(|line| line.say(&control));
            shared.hear(control);
        }
        if hub.alone() {
            lock(&shared.life).alone = true;
            shared.changed.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
