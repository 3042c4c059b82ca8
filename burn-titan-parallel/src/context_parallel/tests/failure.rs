//! A lost peer is an error for everybody, and nobody waits for ever.

use super::*;
use crate::communicator::CommError;

/// Attention where one of three ranks does what `lost` does instead; what the others hear of it in the forward.
fn without(method: Method, timeout: Duration, lost: impl Fn(&World) + Sync) -> Vec<CommError> {
    let case = Case::new(3, 37, 4, 1);
    let heard = on_ranks(3, timeout, |world| {
        if world.rank() == 1 {
            lost(&world);
            return None;
        }
        let peers = peers(&world);
        let own = case.inputs().map(|x| part(&x, &case.shards(), peers.rank()));
        let [query, key, value, _] = own;
        let parallel = ContextParallel::new(peers.clone(), method);
        parallel.attention(query, key, value, &case.visible(peers.rank()), case.scores());
        let error = peers.check().unwrap_err();
        // What comes after it waits for nobody, and the first error stays.
        case.on_rank(&peers, method);
        assert_eq!(peers.check().unwrap_err(), error);
        Some(error)
    });
    heard.into_iter().flatten().collect()
}

#[test]
fn a_rank_that_gives_up_is_named() {
    for method in METHODS {
        let heard = without(method, Duration::from_secs(120), |world| world.abort("out of memory"));
        assert_named(&heard, "rank 1 on this process is lost (out of memory)");
    }
}

#[test]
fn a_rank_that_says_nothing_is_late() {
    std::thread::scope(|scope| {
        for method in METHODS {
            scope.spawn(move || {
                let heard = without(method, Duration::from_secs(2), |_| ());
                assert_named(&heard, "rank 1 on this process did not answer within 2 s");
            });
        }
    });
}

/// Both other ranks have an error, also one that hears of the lost rank from its neighbour alone, and one of them names
/// the rank and the cause.
fn assert_named(heard: &[CommError], want: &str) {
    assert_eq!(heard.len(), 2);
    assert!(heard.iter().any(|error| error.to_string().contains(want)), "{heard:?}");
}
