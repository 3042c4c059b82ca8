//! The launcher of local ranks, on real processes.

use std::time::{Duration, Instant};

use super::processes::*;
use super::*;

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn ranks_know_who_they_are_and_share_a_secret() {
    let done = Launcher::start(3, LONG, "*:who").finish();
    assert_eq!(done.status.code(), Some(0), "{:?}", done.error);
    let mut common = Vec::new();
    for rank in 0..3 {
        let start = format!("[rank {rank}] say:I am rank {rank} of 3, local rank {rank} of 3, ");
        let rest: Vec<&str> =
            done.out.iter().filter_map(|line| line.strip_prefix(start.as_str())).collect();
        assert_eq!(rest.len(), 1, "{:?}", done.out);
        let (rendezvous, rest) = rest[0].split_once(';').unwrap();
        let token = rest.rsplit(' ').next().unwrap();
        assert!(rendezvous.starts_with("rendezvous 127.0.0.1:"), "{rendezvous}");
        assert_eq!((token.len(), rest.contains(&format!("={token}"))), (32, false), "{rest}");
        common.push((rendezvous.to_string(), token.to_string()));
    }
    assert!(common.iter().all(|one| *one == common[0]));
}

#[test]
fn ranks_of_a_pod_are_numbered_behind_those_of_the_pods_before() {
    let environment = [
        ("PET_NNODES", "2"),
        ("PET_NODE_RANK", "1"),
        ("PET_NPROC_PER_NODE", "2"),
        ("PET_MASTER_ADDR", "pod-0"),
        ("PET_MASTER_PORT", "29500"),
        (TOKEN, "shared"),
    ];
    let done = Launcher::start_with(2, LONG, "*:who", &environment).finish();
    assert_eq!(done.status.code(), Some(0), "{:?}", done.error);
    for (local_rank, rank) in [(0, 2), (1, 3)] {
        let start = format!(
            "[rank {rank}] say:I am rank {rank} of 4, local rank {local_rank} of 2, rendezvous pod-0:29500; "
        );
        let lines = || done.out.iter().filter(|line| line.starts_with(&start));
        assert!(lines().all(|line| line.ends_with(" with shared")));
        assert_eq!(lines().count(), 1, "{:?}", done.out);
    }
}

#[test]
fn lines_come_whole_in_order_and_on_their_stream() {
    let done = Launcher::start(4, LONG, "*:lines=400+torn").finish();
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(done.out.len(), 4 * 401);
    for rank in 0..4 {
        let prefix = format!("[rank {rank}] ");
        let of = |lines: &[String]| -> Vec<String> {
            lines.iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_string).collect()
        };
        let want = (0..400).map(|i| format!("say:line {i} {}", "x".repeat(i * 37 % 5000)));
        let want: Vec<String> = want.chain(["say:no end".to_string()]).collect();
        assert!(of(&done.out) == want, "rank {rank}");
        let want: Vec<String> = (0..400).map(|i| format!("error {i}")).collect();
        assert!(of(&done.error) == want, "rank {rank}");
    }
}

#[test]
fn when_one_fails_the_others_are_stopped_and_its_code_is_ours() {
    for (fails, code, says) in [
        ("exit=3", 3, "exited with code 3"),
        ("exit=138", 138, "exited with code 138"),
        ("abort", 134, "was killed by signal 6"),
    ] {
        let todo = format!("1:wait=ready-0+wait=ready-2+{fails},*:catch=143");
        let launcher = Launcher::start(3, LONG, &todo);
        launcher.await_marks("ready", 1);
        let done = launcher.finish();
        assert_eq!(done.status.code(), Some(code));
        let want = format!("[launcher] rank 1 {says}; the other ranks are stopped");
        assert!(done.error.contains(&want), "{:?}", done.error);
        for rank in [0, 2] {
            assert!(done.out.contains(&format!("[rank {rank}] say:stopped by term")));
        }
    }
}

#[test]
fn a_rank_that_ends_well_stops_nobody() {
    let launcher = Launcher::start(2, SHORT, "0:ready+wait=go+say=done,1:ready+exit=0");
    launcher.await_marks("ready", 2);
    let ended = launcher.process(1);
    await_until("rank 1 has ended", || gone(ended));
    launcher.mark("go");
    let done = launcher.finish();
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(done.out, ["[rank 0] say:done"]);
}

#[test]
fn a_stopped_rank_is_killed_after_the_grace() {
    let launcher = Launcher::start(2, SHORT, "0:catch=0,1:wait=go+exit=7");
    launcher.await_marks("ready", 1);
    let stuck = launcher.process(0);
    send(stuck, libc::SIGSTOP);
    launcher.mark("go");
    let done = launcher.finish();
    assert_eq!(done.status.code(), Some(7));
    assert!(gone(stuck));
    let want = "[launcher] ranks have not ended within 0.3 s: killed".to_string();
    assert!(done.error.contains(&want), "{:?}", done.error);
}

#[test]
fn a_killed_rank_is_the_culprit_even_if_one_that_lost_it_ends_first() {
    // Rank 0 says that it lost a peer; rank 1 then fails by itself before it can be stopped.
    let launcher = Launcher::start(2, LONG, "0:wait=ready-1+exit=138,1:catch=101");
    let done = launcher.finish();
    assert_eq!(done.status.code(), Some(101), "{:?}", done.error);
    assert!(done.error.contains(&"[launcher] rank 1 exited with code 101".to_string()));

    let launcher = Launcher::start(2, LONG, "0:catch=143,1:catch=0");
    launcher.await_marks("ready", 2);
    send(launcher.process(1), libc::SIGKILL);
    let done = launcher.finish();
    assert_eq!(done.status.code(), Some(137), "{:?}", done.error);
}

#[test]
fn signals_reach_every_rank() {
    let launcher = Launcher::start(3, SHORT, "*:catch=143");
    launcher.await_marks("ready", 3);
    launcher.signal(libc::SIGUSR1);
    launcher.await_marks("usr1", 3);
    launcher.signal(libc::SIGTERM);
    launcher.await_marks("term", 3);
    let done = launcher.finish();
    // Each stopped by itself: no rank has failed, and none was hurried.
    assert_eq!(done.status.code(), Some(143));
    assert_eq!(done.error.iter().filter(|line| line.contains("[launcher]")).count(), 0);
    for rank in 0..3 {
        assert!(done.out.contains(&format!("[rank {rank}] say:stopped by term")));
    }
}

#[test]
fn a_stop_gives_ranks_the_time_they_need() {
    // Rank 1 ends at once; rank 0 takes longer than the grace, as a checkpoint may.
    let launcher = Launcher::start(2, SHORT, "0:catch=0,1:catch=143");
    launcher.await_marks("ready", 2);
    let slow = launcher.process(0);
    launcher.signal(libc::SIGTERM);
    launcher.await_marks("term", 2);
    let start = Instant::now();
    while start.elapsed() < SHORT * 4 {
        assert!(!gone(slow));
        std::thread::sleep(Duration::from_millis(10));
    }
    // A second interrupt ends it all the same.
    launcher.signal(libc::SIGINT);
    launcher.await_marks("int", 1);
    assert!(!gone(slow));
    launcher.signal(libc::SIGINT);
    let done = launcher.finish();
    assert_eq!(done.status.code(), Some(143), "{:?}", done.error);
    assert!(gone(slow));
}

#[cfg(target_os = "linux")]
#[test]
fn no_rank_outlives_a_launcher_that_is_killed() {
    let mut launcher = Launcher::start(3, LONG, "*:catch=0");
    launcher.await_marks("ready", 3);
    let ranks: Vec<i32> = (0..3).map(|rank| launcher.process(rank)).collect();
    assert!(ranks.iter().all(|rank| !gone(*rank)));
    launcher.child.kill().unwrap();
    launcher.child.wait().unwrap();
    await_until("all ranks are gone", || ranks.iter().all(|rank| gone(*rank)));
}

#[test]
fn what_cannot_be_started_is_said() {
    let host = |ranks| HostLaunch {
        ranks,
        first_rank: 2,
        world_size: 4,
        rendezvous: None,
        source: Source { family: Family::Local, settings: Vec::new() },
    };
    let said = |ranks| {
        run_local(&LocalRun::new(&host(ranks), "/no/such/program".into(), Vec::new()))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(said(0), "cannot start 0 ranks here from rank 2 of 4");
    assert_eq!(said(3), "cannot start 3 ranks here from rank 2 of 4");
    assert_eq!(
        said(usize::MAX),
        format!("cannot start {} ranks here from rank 2 of 4", usize::MAX)
    );
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let done =
        Launcher::start_with(2, LONG, "", &[("LAUNCH_TEST_PROGRAM", "/no/such/program")]).finish();
    assert_eq!(done.status.code(), Some(2));
    let want = "cannot start rank 0 (/no/such/program): No such file or directory (os error 2)";
    assert!(done.error.iter().any(|line| line == want), "{:?}", done.error);
}
