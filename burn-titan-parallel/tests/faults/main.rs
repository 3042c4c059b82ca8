//! Ranks as real processes, which are killed, stopped and cut off in the middle of every collective: the
//! others must end in time, name the culprit, and leave nobody behind.
//!
//! The processes are this test itself, started again: see [`rank`]. Some are on hosts of their own: see [`hosts`].

mod between_hosts;
mod hosts;
mod proxy;
mod rank;
mod switch;
mod world;

use std::time::Duration;

use burn_titan_parallel::host::Kind;
use proxy::Fault;
use world::{Options, World};

/// Survivors have this much more than the time-out to end.
const SPARE: Duration = Duration::from_secs(2);

/// Where this process was started as a rank, it becomes one.
#[test]
fn as_a_rank() {
    if rank::asked() {
        rank::run();
    }
}

/// Ends `victim` in the middle of a collective, and checks what the survivors say.
fn lose(options: &Options, victim: usize, signal: i32, delay: Duration) {
    let Options { kind, size, .. } = *options;
    let mut world = World::start(options);
    world.wait_until_running();
    std::thread::sleep(delay);
    world.signal(victim, signal);
    let limit = rank::TIMEOUT + SPARE;
    for (rank, end) in world.ends(limit, &[victim]) {
        let case = format!("rank {rank} of {size}, {kind} without {victim}: {end:?}");
        assert_eq!(end.code, Some(rank::LOST), "{case}");
        let culprit = format!("rank {victim} on host{victim} is lost");
        assert!(end.error.contains(&culprit), "{case}");
        assert!(end.error.contains("in operation ") && end.error.contains(kind), "{case}");
    }
}

fn lose_in_each(sockets: bool, signal: i32, victim: impl Fn(usize) -> usize) {
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        let options = Options { kind: kind.name(), size: 4, sockets, ..Options::default() };
        lose(&options, victim(i), signal, Duration::from_millis(100));
    }
}

#[test]
fn a_killed_rank_is_named() {
    for sockets in [false, true] {
        lose_in_each(sockets, libc::SIGKILL, |i| 1 + i % 3);
    }
}

#[test]
fn a_killed_rank_0_is_named() {
    for sockets in [false, true] {
        lose_in_each(sockets, libc::SIGKILL, |_| 0);
    }
}

#[test]
fn a_stopped_rank_is_named() {
    lose_in_each(false, libc::SIGSTOP, |i| 1 + i % 3);
}

#[test]
fn a_stopped_rank_of_another_host_is_named() {
    lose_in_each(true, libc::SIGSTOP, |i| 1 + i % 3);
}

#[test]
fn a_stopped_rank_0_is_named() {
    for kind in [Kind::AllReduce, Kind::Broadcast] {
        let options = Options { kind: kind.name(), size: 4, ..Options::default() };
        lose(&options, 0, libc::SIGSTOP, Duration::from_millis(100));
    }
}

#[test]
fn a_stopped_rank_0_that_cannot_judge_a_late_rank_is_named() {
    // The others' time is over before rank 0 was silent for long.
    let mut world = World::start(&Options { kind: "late", size: 4, ..Options::default() });
    world.wait_until_running();
    std::thread::sleep(rank::TIMEOUT.mul_f64(0.6));
    world.signal(0, libc::SIGSTOP);
    for (rank, end) in world.ends(rank::TIMEOUT + SPARE, &[0]) {
        assert_eq!(end.code, Some(rank::LOST), "{rank}: {end:?}");
        assert!(end.error.contains("rank 0 on host0 is lost"), "{rank}: {end:?}");
    }
}

#[test]
fn a_training_thread_that_waits_for_nothing_is_ended() {
    let mut world = World::start(&Options { kind: "idle", size: 3, ..Options::default() });
    world.wait_until_running();
    world.signal(1, libc::SIGKILL);
    for (rank, end) in world.ends(rank::TIMEOUT + SPARE, &[1]) {
        assert_eq!(end.code, Some(rank::LOST), "{rank}: {end:?}");
        assert!(end.error.contains("rank 1 on host1 is lost"), "{rank}: {end:?}");
    }
}

#[test]
fn a_panic_takes_the_others_down_at_once() {
    let mut world = World::start(&Options { kind: "panic", size: 3, ..Options::default() });
    for (rank, end) in world.ends(world::START, &[2]) {
        assert_eq!(end.code, Some(rank::LOST), "{rank}: {end:?}");
        assert!(end.error.contains("rank 2 on host2 is lost (it panicked"), "{rank}: {end:?}");
    }
}

#[test]
fn an_orderly_end_is_no_failure() {
    for kind in Kind::ALL {
        let options = Options { kind: kind.name(), size: 3, rounds: Some(5), ..Options::default() };
        for (rank, end) in World::start(&options).ends(world::START, &[]) {
            assert_eq!(end.code, Some(0), "{} on rank {rank}: {end:?}", kind.name());
        }
    }
}

/// Damages the connection of rank 1 to a higher rank, after some MiB, and returns what all say.
fn damage(fault: Fault) -> Vec<String> {
    let fault = Some(fault);
    let options =
        Options { kind: "all_reduce", size: 4, fault, sockets: true, ..Options::default() };
    let mut world = World::start(&options);
    world.wait_for_fault();
    let ends = world.ends(rank::TIMEOUT + SPARE, &[]);
    let errors = ends.into_iter().map(|(rank, end)| {
        assert_eq!(end.code, Some(rank::LOST), "{fault:?} on rank {rank}: {end:?}");
        end.error
    });
    errors.collect()
}

/// The culprit that all name.
fn agreed(errors: &[String], what: &str) -> usize {
    let named = (0..4).find(|rank| {
        let name = format!("rank {rank} on host{rank}");
        errors.iter().all(|error| error.contains(&name) && error.contains(what))
    });
    named.unwrap_or_else(|| panic!("no common culprit: {errors:#?}"))
}

#[test]
fn damaged_bytes_are_noticed_and_their_sender_named() {
    let errors = damage(Fault::Flip);
    // The proxy damages what goes to rank 1, through the connection of a higher rank.
    assert!(agreed(&errors, "are damaged") >= 2, "{errors:#?}");
}

#[test]
fn missing_bytes_are_noticed_and_their_sender_named() {
    let errors = damage(Fault::Drop);
    // Where nothing comes after them, they look like bytes that are still on their way.
    let what = if errors[0].contains("damaged") { "are damaged" } else { "did not answer" };
    assert!(agreed(&errors, what) >= 2, "{errors:#?}");
}

#[test]
fn a_cut_connection_is_noticed_and_one_of_its_ends_named() {
    let errors = damage(Fault::Cut);
    assert!(agreed(&errors, "is lost") >= 1, "{errors:#?}");
}

#[test]
fn a_connection_that_swallows_everything_ends_the_wait_of_all() {
    let errors = damage(Fault::Hold);
    agreed(&errors, "did not answer within 5 s");
}

/// `BURN_TITAN_KILLS` sets how many worlds lose a random rank at a random moment.
#[test]
fn random_ranks_are_lost_at_random_moments() {
    let kills = std::env::var("BURN_TITAN_KILLS").ok().and_then(|kills| kills.parse().ok());
    for i in 0..kills.unwrap_or(10_u64) {
        let mut random = splitmix(i);
        let mut below = |n: u64| {
            random = splitmix(random);
            random % n
        };
        let kind = Kind::ALL[below(7) as usize].name();
        let size = 2 + below(4) as usize;
        let victim = below(size as u64) as usize;
        // A stopped rank takes most of the time-out to be noticed.
        let signal = if below(10) == 0 { libc::SIGSTOP } else { libc::SIGKILL };
        let delay = Duration::from_micros(below(150_000));
        let options = Options { kind, size, sockets: below(2) == 0, ..Options::default() };
        println!("{i}: {options:?}, signal {signal} to {victim} after {delay:?}");
        lose(&options, victim, signal, delay);
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
