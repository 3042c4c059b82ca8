//! Real processes for tests: this test binary again, in another role.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;

/// Set in the processes that tests start; says what they are.
const ROLE: &str = "LAUNCH_TEST_ROLE";
/// What the ranks of a launcher do.
const RANKS_DO: &str = "LAUNCH_TEST_RANKS_DO";
/// A folder that the ranks write to.
const FOLDER: &str = "LAUNCH_TEST_FOLDER";
/// Long, for a machine with too much to do; nothing waits so long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test: what the processes that tests start come to. In the test run itself there is nothing to do.
#[test]
fn role() {
    match std::env::var(ROLE).as_deref() {
        Ok("launcher") => launcher(),
        Ok("rank") => rank(),
        _ => {}
    }
}

/// `run_local` with this binary for ranks; `LAUNCH_TEST_RANKS` of them.
fn launcher() -> ! {
    // The test run itself may be killed.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    let number = |name: &str| std::env::var(name).unwrap().parse().unwrap();
    let flags = Flags { ranks: Some(number("LAUNCH_TEST_RANKS")), ..Flags::default() };
    // Only what tests set: they may run under a launcher of their own.
    let variables = std::env::vars().filter(|(name, _)| name.starts_with("PET_")).collect();
    let Ok(Place::Host(host)) = read(&flags, &variables) else { panic!("no host") };
    let program = match std::env::var_os("LAUNCH_TEST_PROGRAM") {
        Some(program) => program.into(),
        None => std::env::current_exe().unwrap(),
    };
    let arguments = test_arguments().map(Into::into).to_vec();
    let mut run = LocalRun::new(&host, program, arguments);
    run.environment.push((ROLE.into(), "rank".into()));
    run.grace = Duration::from_millis(number("LAUNCH_TEST_GRACE") as u64);
    match run_local(&run) {
        Ok(outcome) => std::process::exit(outcome.code.into()),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    }
}

fn test_arguments() -> [&'static str; 4] {
    // The scratch crate and the real one have this module at the same place.
    ["--exact", "launch::tests::processes::role", "--nocapture", "--test-threads=1"]
}

/// Does what is said for this rank: `0:sleep,1:exit=3`; a rank that is not named takes `*`.
fn rank() -> ! {
    // libtest has begun a line.
    say("");
    let Ok(Place::Rank(me)) = read(&Flags::default(), &Variables::of_process()) else {
        panic!("no rank")
    };
    let all = std::env::var(RANKS_DO).unwrap();
    let todo = |who: &str| {
        all.split(',').find_map(|word| word.strip_prefix(who)?.strip_prefix(':').map(str::to_owned))
    };
    let todo = todo(&me.rank.to_string()).or_else(|| todo("*")).unwrap();
    for action in todo.split('+') {
        act(action, &me);
    }
    std::process::exit(0);
}

fn act(action: &str, me: &Launch) {
    let (verb, value) = action.split_once('=').unwrap_or((action, ""));
    match verb {
        "say" => say(value),
        "who" => say(&format!("I am {me} with {}", std::env::var(TOKEN).unwrap())),
        "lines" => (0..value.parse().unwrap()).for_each(|i: usize| {
            say(&format!("line {i} {}", "x".repeat(i * 37 % 5000)));
            std::io::stderr().write_all(format!("error {i}\n").as_bytes()).unwrap();
        }),
        "torn" => std::io::stdout().write_all(b"say:no end").unwrap(),
        "exit" => std::process::exit(value.parse().unwrap()),
        "abort" => std::process::abort(),
        // Ready only once signals can be taken.
        "catch" => catch(value.parse().unwrap(), me),
        "ready" => mark("ready", me.rank, &std::process::id().to_string()),
        "wait" => wait_for(value),
        "sleep" => std::thread::sleep(PATIENCE * 10),
        other => panic!("no action {other}"),
    }
}

/// One write, marked, as libtest prints lines of its own.
fn say(text: &str) {
    std::io::stdout().write_all(format!("say:{text}\n").as_bytes()).unwrap();
}

/// Waits for signals, notes each, and exits with `code` after SIGTERM or SIGINT; 0 means never.
fn catch(code: i32, me: &Launch) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let mut interrupt = signal(SignalKind::interrupt()).unwrap();
        let mut user = signal(SignalKind::user_defined1()).unwrap();
        mark("ready", me.rank, &std::process::id().to_string());
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "term",
                _ = interrupt.recv() => "int",
                _ = user.recv() => "usr1",
            };
            mark(name, me.rank, "");
            if name != "usr1" && code != 0 {
                say(&format!("stopped by {name}"));
                std::process::exit(code);
            }
        }
    });
}

fn mark(what: &str, rank: usize, text: &str) {
    let folder = std::env::var(FOLDER).unwrap();
    // Visible only when it is whole.
    let aside = format!("{folder}/aside-{what}-{rank}");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(aside, format!("{folder}/{what}-{rank}")).unwrap();
}

fn wait_for(mark: &str) {
    let path = format!("{}/{mark}", std::env::var(FOLDER).unwrap());
    await_until(&format!("{mark} is there"), || Path::new(&path).exists());
}

pub(super) fn await_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A launcher process and its ranks.
pub(super) struct Launcher {
    pub(super) child: Child,
    folder: tempfile::TempDir,
}

pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) out: Vec<String>,
    pub(super) error: Vec<String>,
}

impl Launcher {
    pub(super) fn start(ranks: usize, grace: Duration, ranks_do: &str) -> Self {
        Self::start_with(ranks, grace, ranks_do, &[])
    }

    pub(super) fn start_with(
        ranks: usize,
        grace: Duration,
        ranks_do: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            // A secret from outside would do, but the tests look at a random one.
            .env_remove(TOKEN)
            .envs(environment.iter().copied())
            .args(test_arguments())
            .env(ROLE, "launcher")
            .env("LAUNCH_TEST_RANKS", ranks.to_string())
            .env("LAUNCH_TEST_GRACE", grace.as_millis().to_string())
            .env(RANKS_DO, ranks_do)
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    pub(super) fn marked(&self, mark: &str) -> bool {
        self.folder.path().join(mark).exists()
    }

    pub(super) fn mark(&self, mark: &str) {
        std::fs::write(self.folder.path().join(mark), "").unwrap();
    }

    pub(super) fn await_marks(&self, what: &str, ranks: usize) {
        for rank in 0..ranks {
            await_until(&format!("{what}-{rank}"), || self.marked(&format!("{what}-{rank}")));
        }
    }

    /// The process number of a rank that is ready.
    pub(super) fn process(&self, rank: usize) -> i32 {
        let path = self.folder.path().join(format!("ready-{rank}"));
        std::fs::read_to_string(path).unwrap().parse().unwrap()
    }

    pub(super) fn signal(&self, signal: i32) {
        send(self.child.id() as i32, signal);
    }

    /// The lines that ranks and launcher wrote, when all is over. libtest's own are left out.
    pub(super) fn finish(mut self) -> Finished {
        let out = lines(self.child.stdout.take().unwrap());
        let error = lines(self.child.stderr.take().unwrap());
        let mut status = None;
        await_until("the launcher has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let out = out.join().unwrap().into_iter().filter(|line| line.contains("] say:")).collect();
        Finished { status: status.unwrap(), out, error: error.join().unwrap() }
    }
}

fn lines(from: impl Read + Send + 'static) -> JoinHandle<Vec<String>> {
    std::thread::spawn(move || BufReader::new(from).lines().map(Result::unwrap).collect())
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // After a failed assertion; the kernel then kills the ranks.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn send(process: i32, signal: i32) {
    assert_eq!(unsafe { libc::kill(process, signal) }, 0, "{}", std::io::Error::last_os_error());
}

/// Whether a process is gone. One that only waits to be reaped, as an orphan may where nobody does, is.
pub(super) fn gone(process: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(_) => unsafe { libc::kill(process, 0) != 0 },
    }
}
