//! Ranks that `mpirun` starts. The processes are this test itself, started again.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use burn_titan_parallel::launch::{self, Flags, Place, Variables};
use burn_titan_parallel::mpi::{MpiConfig, MpiWorld};
use burn_titan_parallel::{CommError, Communicator, Reduction, World, WorldOptions};

use crate::table::check_world;
use crate::{TIMEOUT, WORLDS, reference};

/// The variable that says what a rank is to do.
const ROLE: &str = "BURN_TITAN_TEST_MPI";

/// The exit code of a rank that has lost a peer.
const LOST: i32 = 138;

/// The time-out of ranks that are to run into it.
const SHORT: Duration = Duration::from_secs(2);

/// Where this process was started as a rank, it becomes one.
#[test]
fn as_a_rank_of_mpi() {
    match std::env::var(ROLE).as_deref() {
        Ok("table") => table(),
        Ok("pieces") => pieces(),
        Ok("late") => fail(late()),
        Ok("disagree") => fail(disagree()),
        Ok("uneven") => fail(uneven()),
        Ok("killed") => fail(killed()),
        Ok("alone") => alone(),
        Ok(other) => panic!("{ROLE}={other}"),
        Err(_) => {}
    }
}

/// The world as a program joins it.
fn join(timeout: Duration) -> World {
    let Place::Rank(launch) = launch::read(&Flags::default(), &Variables::of_process()).unwrap()
    else {
        panic!("no rank")
    };
    World::over_mpi(&launch, &options(timeout)).unwrap()
}

fn options(timeout: Duration) -> WorldOptions {
    WorldOptions { timeout, join_timeout: TIMEOUT, ..WorldOptions::default() }
}

fn everybody(world: &World) -> Box<dyn Communicator> {
    world.communicator("all", &(0..world.size()).collect::<Vec<_>>()).unwrap()
}

fn table() {
    check_world(&join(TIMEOUT));
    let again = MpiWorld::init(MpiConfig { timeout: SHORT, join_timeout: SHORT, limit: 1 });
    assert_eq!(
        again.unwrap_err().to_string(),
        "MPI was already started in this process: it can be started only once"
    );
}

/// The table where one call of MPI takes few numbers.
fn pieces() {
    let config = MpiConfig { timeout: TIMEOUT, join_timeout: TIMEOUT, limit: 4_000 };
    check_world(&World::of_mpi(MpiWorld::init(config).unwrap()));
}

/// Rank 1 does not come to the barrier.
fn late() -> CommError {
    let world = join(SHORT);
    let ranks = everybody(&world);
    if world.rank() == 1 {
        std::thread::sleep(TIMEOUT);
    }
    let error = ranks.barrier().wait().unwrap_err();
    let next = ranks.barrier().wait().unwrap_err();
    assert_eq!(next, CommError::Closed(error.to_string()));
    assert_eq!(world.close().unwrap_err(), next);
    error
}

/// The second operation of rank 1 is another one.
fn disagree() -> CommError {
    let world = join(TIMEOUT);
    let ranks = everybody(&world);
    ranks.barrier().wait().unwrap();
    let count = 5 + world.rank();
    let x = || reference::buffer(burn::tensor::DType::F32, &vec![1.0; count]);
    ranks.all_reduce(x(), Reduction::Sum).wait().unwrap_err()
}

/// Rank 1 sends less than rank 0 waits for.
fn uneven() -> CommError {
    let world = join(SHORT);
    let ranks = everybody(&world);
    let x = reference::buffer(burn::tensor::DType::U8, &[1.0; 4]);
    if world.rank() == 1 {
        let work = ranks.all_to_all(x, &[1, 3], &[2, 3]);
        std::thread::sleep(TIMEOUT);
        return work.wait().unwrap_err();
    }
    ranks.all_to_all(x, &[2, 2], &[2, 2]).wait().unwrap_err()
}

/// Rank 1 is killed in the middle of operations.
fn killed() -> CommError {
    let world = join(TIMEOUT);
    let ranks = everybody(&world);
    let x = || reference::buffer(burn::tensor::DType::F32, &vec![1.0; 1 << 20]);
    for round in 0.. {
        let work = ranks.all_reduce(x(), Reduction::Sum);
        if (world.rank(), round) == (1, 3) {
            // SAFETY: ends this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        if let Err(error) = work.wait() {
            return error;
        }
    }
    unreachable!("rank 1 was killed")
}

/// Not started by `mpirun`, but told to be one of four.
fn alone() {
    let flags = Flags { rank: Some(0), world_size: Some(4), ..Flags::default() };
    let Place::Rank(launch) = launch::read(&flags, &Variables::default()).unwrap() else {
        panic!("no rank")
    };
    let error = World::over_mpi(&launch, &options(TIMEOUT)).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the command line (--rank 0, --world-size 4) says rank 0 of 4, but MPI says rank 0 of 1: start the ranks \
         by the mpirun (or srun --mpi) of the MPI library that this program was built with, and leave --ranks and \
         --rank out"
    );
}

fn fail(error: CommError) -> ! {
    println!("says {error}");
    std::process::exit(LOST)
}

/// Starts this test as so many ranks in this role; what they have printed.
fn mpirun(size: usize, role: &str) -> Output {
    let mut command = Command::new("mpirun");
    // Where the tests run as root that is a container; and there are more ranks than cores.
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    command.args(["-n", &size.to_string()]).arg(std::env::current_exe().unwrap());
    finish(command, role)
}

fn finish(mut command: Command, role: &str) -> Output {
    command.args(["--exact", "mpi::as_a_rank_of_mpi", "--nocapture"]).env(ROLE, role);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("mpirun, of the package openmpi-bin");
    let id = child.id() as i32;
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(2 * TIMEOUT).is_err() {
                // SAFETY: `kill` touches no memory; the child is not waited for before `done` is told.
                unsafe { libc::kill(id, libc::SIGTERM) };
            }
        });
        let output = child.wait_with_output().unwrap();
        let _ = done.send(());
        output
    })
}

#[track_caller]
fn succeeds(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{error}", output.status);
    assert!(out.contains("1 passed"), "{out}\n{error}");
}

/// What ranks that have failed say: each a line.
#[track_caller]
fn says(output: &Output, any_of: &[&str]) {
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut lines = out.lines().filter_map(|line| line.split_once("says ")).map(|line| line.1);
    assert!(lines.any(|line| any_of.contains(&line)), "{out}\n{error}");
    assert_eq!(output.status.code(), Some(LOST), "{out}\n{error}");
}

#[test]
fn mpi_gives_what_the_reference_does() {
    for size in WORLDS {
        succeeds(&mpirun(size, "table"));
    }
}

#[test]
fn buffers_beyond_one_call_go_piece_by_piece() {
    succeeds(&mpirun(3, "pieces"));
}

#[test]
fn a_late_rank_is_waited_for_until_the_time_out() {
    let start = Instant::now();
    let output = mpirun(2, "late");
    assert!(start.elapsed() < TIMEOUT, "{:?}", start.elapsed());
    says(
        &output,
        &[
            "operation 1: barrier: not done within 2 s among 2 ranks: one of them is lost or late, and MPI does \
           not say which",
        ],
    );
}

#[test]
fn ranks_that_disagree_are_told_so() {
    let host = String::from_utf8(Command::new("uname").arg("-n").output().unwrap().stdout).unwrap();
    let host = host.trim();
    let error = |rank: usize| {
        let (ours, theirs) = (5 + rank, 6 - rank);
        format!(
            "rank {} on {host} makes another call: operation 2: all_reduce (sum) of {theirs} x f32, but rank \
             {rank} makes operation 2: all_reduce (sum) of {ours} x f32; every rank must make the same calls in \
             the same order",
            1 - rank
        )
    };
    says(&mpirun(2, "disagree"), &[&error(0), &error(1)]);
    let short = format!(
        "the bytes from rank 1 on {host} are damaged (1 bytes instead of 2) in operation 1: all_to_all of 0 x u8"
    );
    says(&mpirun(2, "uneven"), &[&short]);
}

#[test]
fn a_killed_rank_takes_the_others_along() {
    let output = mpirun(3, "killed");
    assert!(!output.status.success(), "{output:?}");
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(says.contains("rank 1") && says.contains("signal 9"), "{says}");
}

#[test]
fn another_rank_than_the_launcher_says_is_refused() {
    succeeds(&finish(Command::new(std::env::current_exe().unwrap()), "alone"));
}
