//! Hosts with addresses of their own: network namespaces on this machine, with a network between them.
//!
//! A test runs itself again in a namespace where it may make others, each held by a thread; what that thread
//! starts is on the host. All is gone with the process.

use std::io::{Error, Result, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use crate::switch::{self, Cable, INTERFACE, Switch};

/// Set where the test is in its namespace.
const INSIDE: &str = "BURN_TITAN_TEST_INSIDE";
/// What it says, at the start of a line, where the rest is not permitted.
const SKIPS: &str = "says skip ";

type Job = Box<dyn FnOnce() + Send>;

/// Hosts, and what connects them.
pub struct Network {
    hosts: Vec<Sender<Job>>,
    /// What connects them.
    pub switch: Arc<Switch>,
}

/// The address of a host.
pub fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// Runs a test with this name where it can make hosts; prints why, where that is not permitted.
pub fn within(test: &str, hosts: usize, cable: Cable, case: impl FnOnce(Network)) {
    if std::env::var_os(INSIDE).is_some() {
        return match Network::new(hosts, cable) {
            Ok(network) => case(network),
            Err(error) => println!("\n{SKIPS}{error}"),
        };
    }
    let output = namespace(Command::new(std::env::current_exe().unwrap()))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output();
    let reason = match output {
        Err(error) => error.to_string(),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}\n{error}");
            let Some(reason) = said.lines().find_map(|line| line.strip_prefix(SKIPS)) else {
                return;
            };
            reason.to_string()
        }
    };
    // Not by `println`, which the test harness would swallow.
    let _ = writeln!(std::io::stderr(), "{test} is skipped: network namespaces: {reason}");
}

/// The command, about to run in a network namespace of its own, with the right to make others.
fn namespace(mut command: Command) -> Command {
    // SAFETY: these calls take no pointers.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let maps = [
        (c"/proc/self/setgroups", "deny".to_string()),
        (c"/proc/self/uid_map", format!("0 {user} 1")),
        (c"/proc/self/gid_map", format!("0 {group} 1")),
    ];
    let prepare = move || {
        // Only root may do so as it is.
        let flags = if user == 0 { 0 } else { libc::CLONE_NEWUSER } | libc::CLONE_NEWNET;
        // SAFETY: all of these are safe between fork and exec, and the pointers outlive the calls.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::unshare(flags) != 0 {
                return Err(Error::last_os_error());
            }
            for (file, text) in maps.iter().filter(|_| user != 0) {
                let file = libc::open(file.as_ptr(), libc::O_WRONLY);
                if libc::write(file, text.as_ptr().cast(), text.len()) < 0 {
                    return Err(Error::last_os_error());
                }
                libc::close(file);
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
    command
}

impl Network {
    fn new(size: usize, cable: Cable) -> Result<Self> {
        let (mut hosts, mut taps) = (Vec::new(), Vec::new());
        for host in 0..size {
            let (sender, jobs) = channel::<Job>();
            let (ready, made) = channel();
            std::thread::spawn(move || {
                let tap = settle(host);
                let failed = tap.is_err();
                ready.send(tap).unwrap();
                if !failed {
                    jobs.iter().for_each(|job| job());
                }
            });
            taps.push(made.recv().unwrap()?);
            hosts.push(sender);
        }
        Ok(Self { hosts, switch: Switch::start(taps, cable)? })
    }

    /// Does something on a host.
    pub fn on<T: Send + 'static>(
        &self,
        host: usize,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (sender, done) = channel();
        self.hosts[host].send(Box::new(move || sender.send(job()).unwrap())).unwrap();
        done.recv().unwrap()
    }

    /// Takes the interface of a host down.
    pub fn unplug(&self, host: usize) {
        self.on(host, || ip(&["link", "set", INTERFACE, "down"])).unwrap();
    }
}

/// Makes the calling thread a host: its namespace, and the interface in it.
fn settle(host: usize) -> Result<std::fs::File> {
    // SAFETY: takes no pointers.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(Error::last_os_error());
    }
    let tap = switch::tap()?;
    let hardware = switch::hardware_address(host).map(|byte| format!("{byte:02x}")).join(":");
    ip(&["link", "set", "lo", "up"])?;
    ip(&["address", "add", &format!("{}/24", address(host)), "dev", INTERFACE])?;
    ip(&["link", "set", INTERFACE, "address", &hardware, "up"])?;
    Ok(tap)
}

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
