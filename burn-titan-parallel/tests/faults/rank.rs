//! A rank, as a process of its own.

use std::sync::Arc;
use std::time::Duration;

use burn_titan_parallel::host::tcp::{Listener, Token};
use burn_titan_parallel::host::{
    Call, CommError, Element, Exchange, Group, Kind, Links, Queue, Reduction, TcpConfig, TcpLinks,
};

use burn_titan_parallel::WorldOptions;
use burn_titan_parallel::join::links;
use burn_titan_parallel::launch::{Family, Launch, Rendezvous, Source};
use burn_titan_parallel::placement::shard_range;

use crate::proxy;

/// The time-out of every operation.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The exit code of a rank that has lost a peer.
pub const LOST: i32 = 138;

/// The variables that a rank is told what to do by.
pub const RANK: &str = "BURN_TITAN_TEST_RANK";
pub const SIZE: &str = "BURN_TITAN_TEST_SIZE";
pub const STORE: &str = "BURN_TITAN_TEST_STORE";
pub const KIND: &str = "BURN_TITAN_TEST_KIND";
pub const ROUNDS: &str = "BURN_TITAN_TEST_ROUNDS";
pub const FAULT: &str = "BURN_TITAN_TEST_FAULT";
pub const SOCKETS: &str = "BURN_TITAN_TEST_SOCKETS";
pub const RENDEZVOUS: &str = "BURN_TITAN_TEST_RENDEZVOUS";

/// The collective that is every one, with its result checked; over links that may be slow.
pub const CHECK: &str = "check";

/// What a rank says, at the start of a line.
pub const SAYS_STORE: &str = "says store ";
pub const SAYS_RUNNING: &str = "says running";
pub const SAYS_FAULT: &str = "says fault";
pub const SAYS_ERROR: &str = "says error ";

/// Bytes of a buffer: some MiB, so that an operation takes most of the time.
const BYTES: usize = 3 << 20;

/// Whether this process was started as a rank.
pub fn asked() -> bool {
    std::env::var_os(RANK).is_some()
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// Joins the others, and makes the same collective again and again.
pub fn run() -> ! {
    let (rank, size) = (number(RANK).unwrap(), number(SIZE).unwrap());
    let kind = std::env::var(KIND).unwrap();
    let timeout = if kind == CHECK { crate::world::START } else { TIMEOUT };
    let joined = match std::env::var(RENDEZVOUS) {
        Ok(host) => join_hosts(rank, size, host, timeout),
        Err(_) => join(rank, size),
    };
    let links = joined.unwrap_or_else(|error| fail(&error.to_string()));
    links.on_failure(Box::new(|error| {
        // The training thread has the time to fail by itself.
        std::thread::sleep(Duration::from_millis(1500));
        fail(&error.to_string())
    }));
    let links: Arc<dyn Links> = Arc::new(links);
    let members: Vec<usize> = (0..size).collect();
    let group = Group::new(links.clone(), members.clone(), 1, timeout);
    let queue = Queue::new(Group::new(links.clone(), members, 2, timeout)).unwrap();
    println!("{SAYS_RUNNING}");

    let rounds = number(ROUNDS).unwrap_or(usize::MAX);
    for sequence in (1..).take(rounds) {
        let done = match kind.as_str() {
            "late" if rank + 1 < size => queue.barrier().wait(),
            "late" | "idle" => {
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            }
            "panic" if rank == 2 => {
                // Unwinding drops the links.
                drop((group, queue));
                let _links = links;
                panic!("rank 2 panics");
            }
            "panic" => queue.barrier().wait(),
            CHECK => check(&queue),
            "send_receive" => pass_on(&group, sequence),
            name => {
                operate(Kind::ALL.into_iter().find(|kind| kind.name() == name).unwrap(), &queue)
            }
        };
        if let Err(error) = done {
            fail(&error.to_string());
        }
    }
    match links.close() {
        Ok(()) => std::process::exit(0),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(error: &str) -> ! {
    println!("{SAYS_ERROR}{error}");
    std::process::exit(LOST)
}

fn join(rank: usize, size: usize) -> Result<TcpLinks, Box<dyn std::error::Error>> {
    let loopback = "127.0.0.1:0".parse()?;
    let mut listener = Listener::bind(loopback)?;
    if let (1, Ok(fault)) = (rank, std::env::var(FAULT)) {
        let address = listener.address();
        listener = listener.advertise(proxy::start(address, fault.parse()?)?);
    }
    let config = TcpConfig {
        rank,
        world_size: size,
        host: format!("host{rank}"),
        token: Token::new("a token for tests")?,
        timeout: TIMEOUT,
        join_timeout: crate::world::START,
        shared_memory: std::env::var_os(SOCKETS).is_none(),
        bytes_per_second: None,
        log: Arc::new(|note| println!("{note}")),
    };
    if rank == 0 {
        let store = Listener::bind(loopback)?;
        println!("{SAYS_STORE}{}", store.address());
        Ok(TcpLinks::lead(store, listener, config)?)
    } else {
        Ok(TcpLinks::join(&std::env::var(STORE)?, listener, config)?)
    }
}

/// As a launched process does.
fn join_hosts(
    rank: usize,
    world_size: usize,
    host: String,
    timeout: Duration,
) -> Result<TcpLinks, Box<dyn std::error::Error>> {
    let launch = Launch {
        rank,
        world_size,
        local_rank: 0,
        local_size: Some(1),
        rendezvous: Some(Rendezvous { host, port: 29500 }),
        source: Source { family: Family::Flags, settings: Vec::new() },
    };
    let options = WorldOptions {
        timeout,
        join_timeout: crate::world::START,
        token: Some("a token for tests".to_string()),
        // These hosts have one kernel, which would let them.
        shared_memory: false,
        ..WorldOptions::default()
    };
    Ok(links(&launch, &options)?)
}

/// Makes every collective once, of a size that does not divide by the ranks.
fn check(queue: &Queue) -> Result<(), CommError> {
    const COUNT: usize = 10_007;
    let (rank, size) = (queue.rank(), queue.size());
    let (u8s, sum) = (Element::U8, Reduction::Sum);
    let of = |rank: usize| vec![rank as u8 + 1; COUNT];
    let total = (size * (size + 1) / 2) as u8;
    let shares: Vec<usize> = (0..size).map(|rank| shard_range(COUNT, size, rank).len()).collect();
    let shard = |rank: usize| vec![rank as u8 + 1; shares[rank]];
    let all_shards = (0..size).flat_map(shard).collect::<Vec<_>>();
    assert_eq!(queue.all_reduce(of(rank), u8s, sum).wait()?, [total; COUNT]);
    assert_eq!(queue.all_gather(shard(rank), &shares, u8s).wait()?, all_shards);
    let reduced = queue.reduce_scatter(of(rank), &shares, u8s, sum).wait()?;
    assert_eq!(reduced, vec![total; shares[rank]]);
    let own = vec![shares[rank]; size];
    let exchanged = queue.all_to_all(all_shards, &shares, &own, u8s).wait()?;
    assert_eq!(exchanged, vec![rank as u8 + 1; size * shares[rank]]);
    let root = size - 1;
    assert_eq!(queue.broadcast(of(rank), COUNT, u8s, root).wait()?, of(root));
    queue.barrier().wait()
}

fn operate(kind: Kind, queue: &Queue) -> Result<(), CommError> {
    let (size, element) = (queue.size(), Element::F32);
    let buffer = vec![0; BYTES];
    let shares = vec![BYTES / 4 / size; size];
    let shared = vec![0; shares.iter().sum::<usize>() * 4];
    let pending = match kind {
        Kind::AllReduce => queue.all_reduce(buffer, element, Reduction::Sum),
        Kind::AllGather => queue.all_gather(vec![0; shares[0] * 4], &shares, element),
        Kind::ReduceScatter => queue.reduce_scatter(shared, &shares, element, Reduction::Sum),
        Kind::AllToAll => queue.all_to_all(shared, &shares, &shares, element),
        Kind::Broadcast => {
            // A root that only sends would run ahead of the others without end.
            queue.broadcast(buffer, BYTES / 4, element, 0).wait()?;
            queue.broadcast(vec![0; BYTES], BYTES / 4, element, size - 1)
        }
        Kind::Barrier => return queue.barrier().wait(),
        Kind::SendReceive => unreachable!("has no place in a queue"),
    };
    pending.wait().map(drop)
}

/// Everybody sends to the next rank.
fn pass_on(group: &Group, sequence: u64) -> Result<(), CommError> {
    let call = Call {
        kind: Kind::SendReceive,
        element: Element::U8,
        reduction: Reduction::Sum,
        root: 0,
        count: BYTES as u64,
        shape: 0,
        sequence,
    };
    let (rank, size) = (group.rank(), group.size());
    group.send_to(&call, (rank + 1) % size, &[0; BYTES])?;
    group.receive_from(&call, (rank + size - 1) % size, &mut vec![0; BYTES])
}
