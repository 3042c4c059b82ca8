//! The processes of a world, as the one who has started them sees them.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::hosts::{self, Network};
use crate::proxy::Fault;
use crate::rank;

/// How long processes may take to start, and to do something that takes no time by itself.
pub const START: Duration = Duration::from_secs(60);

/// What the ranks are told to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The collective, by its name; or something else that [`rank::run`] knows.
    pub kind: &'a str,
    /// Ranks of the world.
    pub size: usize,
    /// Ends in good order after so many.
    pub rounds: Option<usize>,
    /// The fault of a connection of rank 1.
    pub fault: Option<Fault>,
    /// Everything goes over sockets, as between hosts.
    pub sockets: bool,
}

/// How a rank has ended.
#[derive(Debug)]
pub struct End {
    /// Its exit code; none after a signal.
    pub code: Option<i32>,
    /// The error that it has printed last.
    pub error: String,
}

/// The processes; those that are left are killed when it is dropped.
pub struct World {
    children: Vec<Child>,
    lines: Receiver<(usize, String)>,
    errors: Vec<String>,
    signalled: Option<Instant>,
}

impl World {
    /// Starts all ranks.
    pub fn start(options: &Options) -> Self {
        let (sender, lines) = channel();
        let errors = vec![String::new(); options.size];
        let mut world = Self { children: Vec::new(), lines, errors, signalled: None };
        world.children.push(spawn(0, options, "", &sender));
        let store = world.hear(rank::SAYS_STORE).1;
        for rank in 1..options.size {
            world.children.push(spawn(rank, options, &store, &sender));
        }
        world
    }

    /// Starts each rank on a host of its own.
    pub fn start_on(network: &Network, options: &Options) -> Self {
        let (sender, lines) = channel();
        let errors = vec![String::new(); options.size];
        let mut world = Self { children: Vec::new(), lines, errors, signalled: None };
        for rank in 0..options.size {
            let mut command = command(rank, options, "");
            command.env(rank::RENDEZVOUS, hosts::address(0));
            let child = network.on(rank, move || command.spawn().unwrap());
            world.children.push(listen(rank, child, &sender));
        }
        world
    }

    /// Returns once every rank has joined.
    pub fn wait_until_running(&mut self) {
        for _ in 0..self.children.len() {
            self.hear(rank::SAYS_RUNNING);
        }
    }

    /// Returns once the proxy has done what it is there for.
    pub fn wait_for_fault(&mut self) {
        self.hear(rank::SAYS_FAULT);
        self.has_failed();
    }

    /// Notes that what the ranks must notice has happened now.
    pub fn has_failed(&mut self) {
        self.signalled = Some(Instant::now());
    }

    /// Sends a signal to a rank.
    pub fn signal(&mut self, rank: usize, signal: i32) {
        let id = self.children[rank].id() as i32;
        // SAFETY: `kill` touches no memory; the child was not waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
        self.has_failed();
    }

    /// How all ranks but `without` have ended, each of them within `limit` of the signal or the
    /// fault, or of now.
    pub fn ends(&mut self, limit: Duration, without: &[usize]) -> Vec<(usize, End)> {
        let deadline = self.signalled.unwrap_or_else(Instant::now) + limit;
        let mut codes = vec![None; self.children.len()];
        let others: Vec<usize> =
            (0..self.children.len()).filter(|rank| !without.contains(rank)).collect();
        while others.iter().any(|rank| codes[*rank].is_none()) {
            assert!(Instant::now() < deadline, "not ended in time: {codes:?}, {:?}", self.errors);
            for rank in &others {
                codes[*rank] = self.children[*rank].try_wait().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill_all();
        // The readers end with the processes, and so do the lines.
        while let Ok((rank, line)) = self.lines.recv_timeout(START) {
            self.note(rank, &line);
        }
        let end = |rank: &usize| End {
            code: codes[*rank].and_then(|status| status.code()),
            error: self.errors[*rank].clone(),
        };
        others.iter().map(|rank| (*rank, end(rank))).collect()
    }

    /// The next line that begins like this, from any rank: which, and the rest.
    fn hear(&mut self, begin: &str) -> (usize, String) {
        let deadline = Instant::now() + START;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (rank, line) = self.lines.recv_timeout(left).unwrap_or_else(|error| {
                panic!("nobody says {begin:?}: {error}, {:?}", self.errors)
            });
            if let Some(rest) = line.strip_prefix(begin) {
                return (rank, rest.to_string());
            }
            self.note(rank, &line);
        }
    }

    fn note(&mut self, rank: usize, line: &str) {
        if let Some(error) = line.strip_prefix(rank::SAYS_ERROR) {
            self.errors[rank] = error.to_string();
        }
    }

    fn kill_all(&mut self) {
        for child in &mut self.children {
            // Those that have ended by themselves cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_all();
    }
}

fn spawn(rank: usize, options: &Options, store: &str, lines: &Sender<(usize, String)>) -> Child {
    listen(rank, command(rank, options, store).spawn().unwrap(), lines)
}

fn command(rank: usize, options: &Options, store: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "as_a_rank", "--nocapture"]);
    command.env(rank::RANK, rank.to_string()).env(rank::SIZE, options.size.to_string());
    command.env(rank::STORE, store).env(rank::KIND, options.kind);
    if let Some(rounds) = options.rounds {
        command.env(rank::ROUNDS, rounds.to_string());
    }
    if let Some(fault) = options.fault {
        command.env(rank::FAULT, format!("{fault:?}"));
    }
    if options.sockets {
        command.env(rank::SOCKETS, "1");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // SAFETY: `prctl` is async-signal-safe; a rank must not outlive a test that is killed.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

/// Passes on what a rank says.
fn listen(rank: usize, mut child: Child, lines: &Sender<(usize, String)>) -> Child {
    let (output, lines) = (child.stdout.take().unwrap(), lines.clone());
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // libtest begins its line without an end.
            let line = line.trim_start_matches("test as_a_rank ... ").to_string();
            if lines.send((rank, line)).is_err() {
                return;
            }
        }
    });
    child
}
