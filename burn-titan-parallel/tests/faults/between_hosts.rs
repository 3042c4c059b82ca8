//! Ranks on hosts of their own: over good and bad links, and when a link is cut.

use std::time::Duration;

use crate::SPARE;
use crate::hosts::within;
use crate::rank;
use crate::switch::Cable;
use crate::world::{Options, START, World};

const CHECKS: Options =
    Options { kind: rank::CHECK, size: 3, rounds: Some(5), fault: None, sockets: true };
const WORKS: Options =
    Options { kind: "all_reduce", size: 3, rounds: None, fault: None, sockets: true };

#[test]
fn collectives_are_right_between_hosts() {
    let test = "between_hosts::collectives_are_right_between_hosts";
    within(test, 3, Cable::default(), |network| {
        for (rank, end) in World::start_on(&network, &CHECKS).ends(START, &[]) {
            assert_eq!(end.code, Some(0), "{rank}: {end:?}");
        }
    });
}

#[test]
fn collectives_are_right_over_a_slow_link_that_loses_frames() {
    let test = "between_hosts::collectives_are_right_over_a_slow_link_that_loses_frames";
    let cable =
        Cable { delay: Duration::from_millis(5), lost_of_1000: 20, bytes_per_second: Some(2e6) };
    within(test, 3, cable, |network| {
        for (rank, end) in World::start_on(&network, &CHECKS).ends(START, &[]) {
            assert_eq!(end.code, Some(0), "{rank}: {end:?}");
        }
        assert!(network.switch.lost() > 0);
    });
}

#[test]
fn a_host_whose_link_is_down_is_named() {
    let test = "between_hosts::a_host_whose_link_is_down_is_named";
    within(test, 3, Cable::default(), |network| {
        let mut world = World::start_on(&network, &WORKS);
        world.wait_until_running();
        network.unplug(2);
        world.has_failed();
        for (rank, end) in world.ends(rank::TIMEOUT + SPARE, &[]) {
            assert_eq!(end.code, Some(rank::LOST), "{rank}: {end:?}");
            // For the one that is cut off, it is the other way round.
            let culprit = if rank == 2 { "rank 0 on " } else { "rank 2 on " };
            assert!(end.error.starts_with(culprit), "{rank}: {end:?}");
            assert!(end.error.contains("is lost (no sign of life"), "{rank}: {end:?}");
        }
    });
}

#[test]
fn a_rank_0_whose_link_is_down_is_named() {
    let test = "between_hosts::a_rank_0_whose_link_is_down_is_named";
    within(test, 3, Cable::default(), |network| {
        let mut world = World::start_on(&network, &WORKS);
        world.wait_until_running();
        network.unplug(0);
        world.has_failed();
        for (rank, end) in world.ends(rank::TIMEOUT + SPARE, &[]) {
            assert_eq!(end.code, Some(rank::LOST), "{rank}: {end:?}");
            assert_eq!(end.error.starts_with("rank 0 on "), rank != 0, "{rank}: {end:?}");
        }
    });
}

#[test]
fn a_cut_between_two_hosts_ends_all_and_one_of_them_is_named() {
    let test = "between_hosts::a_cut_between_two_hosts_ends_all_and_one_of_them_is_named";
    within(test, 3, Cable::default(), |network| {
        let mut world = World::start_on(&network, &WORKS);
        world.wait_until_running();
        network.switch.cut(1, 2);
        world.has_failed();
        let ends = world.ends(rank::TIMEOUT + SPARE, &[]);
        assert!(ends.iter().all(|(_, end)| end.code == Some(rank::LOST)), "{ends:?}");
        let errors: Vec<String> = ends.into_iter().map(|(_, end)| end.error).collect();
        assert!(
            [1, 2].iter().any(|rank| {
                let name = format!("rank {rank} on ");
                errors.iter().all(|error| error.starts_with(&name))
            }),
            "{errors:#?}"
        );
    });
}
