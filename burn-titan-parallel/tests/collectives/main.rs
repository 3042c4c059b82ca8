//! Every collective, over every communicator, in every dtype, at sizes 0, 1, a prime and one element more than
//! a MiB, in worlds of 1, 2, 3, 4 and 7 ranks: against a reference, and bit by bit from run to run and from
//! communicator to communicator.

#[cfg(feature = "mpi")]
mod mpi;
mod reference;
mod table;

use std::sync::Arc;
use std::time::Duration;

use burn_titan_parallel::World;
use burn_titan_parallel::host::tcp::{Listener, Token};
use burn_titan_parallel::host::{TcpConfig, TcpLinks};
use table::{Outcome, check_world};

/// Ranks of the worlds.
const WORLDS: [usize; 5] = [1, 2, 3, 4, 7];

/// How long a rank waits for another: many run on few cores.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What every rank of a world got.
fn outcomes(worlds: Vec<World>) -> Vec<Vec<Outcome>> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            worlds.into_iter().map(|world| scope.spawn(move || check_world(&world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// The ranks of a world over tcp on this host.
fn tcp(size: usize, shared_memory: bool) -> Vec<World> {
    let listener = || Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let store = listener();
    let address = store.address().to_string();
    let config = |rank| TcpConfig {
        rank,
        world_size: size,
        host: "this host".to_string(),
        token: Token::new("collectives").unwrap(),
        timeout: TIMEOUT,
        join_timeout: TIMEOUT,
        shared_memory,
        bytes_per_second: None,
        log: Arc::new(|note| panic!("{note}")),
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..size)
            .map(|rank| {
                let address = &address;
                scope.spawn(move || TcpLinks::join(address, listener(), config(rank)).unwrap())
            })
            .collect();
        let first = TcpLinks::lead(store, listener(), config(0)).unwrap();
        let others = others.into_iter().map(|rank| rank.join().unwrap());
        let links = std::iter::once(first).chain(others);
        links.map(|links| World::over(Arc::new(links), TIMEOUT)).collect()
    })
}

#[test]
fn threads_and_processes_give_the_same_bits() {
    for size in WORLDS {
        let threads = outcomes(World::local(size, TIMEOUT));
        for shared_memory in [true, false] {
            let processes = outcomes(tcp(size, shared_memory));
            for (rank, (threads, processes)) in threads.iter().zip(&processes).enumerate() {
                for (a, b) in threads.iter().zip(processes) {
                    assert_eq!(a, b, "rank {rank} of {size}, shared memory: {shared_memory}");
                }
                assert_eq!(threads.len(), processes.len());
            }
        }
    }
}
