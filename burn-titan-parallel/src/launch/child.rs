//! One local rank: how its process is started, watched and signalled.

use std::io;
use std::process::{ExitStatus, Stdio};

use std::os::unix::process::ExitStatusExt;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::local::LocalRun;
use super::output::{Output, Stream};

/// Tells a rank's process something.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// Sends a signal to the process.
    Signal(i32),
    /// Kills the process and what it has started.
    Kill,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It exited.
    Code(u8),
    /// A signal killed it.
    Signal(i32),
}

impl End {
    fn of(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Self::Signal(signal),
            // Unix keeps eight bits of what a process exits with.
            None => Self::Code(status.code().unwrap_or(1) as u8),
        }
    }

    /// The code as shells have it: 128 + n for signal n.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => (128 + signal) as u8,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// Starts a rank; its streams go to `output`.
pub(super) fn start(
    run: &LocalRun,
    environment: &[(&str, String)],
    rank: usize,
    output: &mut Output,
) -> io::Result<Child> {
    let mut command = Command::new(&run.program);
    command
        .args(&run.arguments)
        .envs(run.environment.iter().map(|(name, value)| (name, value)))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own group: a terminal's Ctrl-C reaches it once, through us, and not twice.
        .process_group(0)
        .kill_on_drop(true);
    die_with_parent(&mut command);
    let mut child = command.spawn()?;
    if let Some(stdout) = child.stdout.take() {
        output.read(rank, Stream::Out, stdout);
    }
    if let Some(stderr) = child.stderr.take() {
        output.read(rank, Stream::Error, stderr);
    }
    Ok(child)
}

/// Has the kernel kill the process when the thread that starts it is gone, however that happens.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: both calls are safe between fork and exec, and take and give no pointers.
        let (failed, now) =
            unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0, libc::getppid()) };
        if failed {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the call; then nothing would come any more.
        if now as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: `prepare` allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Other systems have no such call: there a rank notices that its peers are gone.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// Carries out orders until the process has ended.
pub(super) async fn watch(
    rank: usize,
    mut child: Child,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> (usize, io::Result<End>) {
    loop {
        tokio::select! {
            status = child.wait() => return (rank, status.map(End::of)),
            Some(order) = orders.recv() => deliver(&child, order),
        }
    }
}

fn deliver(child: &Child, order: Order) {
    // No number: it has ended and its number may be another's.
    let Some(process) = child.id() else { return };
    let process = process as libc::pid_t;
    let (target, signal) = match order {
        Order::Signal(signal) => (process, signal),
        Order::Kill => (-process, libc::SIGKILL),
    };
    // SAFETY: takes no pointers. It fails only if the process is gone, which `wait` is about to say.
    unsafe { libc::kill(target, signal) };
}
