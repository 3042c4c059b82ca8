//! The same collectives as between threads, over TCP; who is let in; and what is said of the lost.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::tests::{self, data, queue};
use super::super::{CommError, Element, Exchange, Links, Queue, Reduction};
use super::*;

const LOOPBACK: &str = "127.0.0.1:0";

fn listener() -> Listener {
    Listener::bind(LOOPBACK.parse().unwrap()).unwrap()
}

type Notes = Arc<Mutex<Vec<String>>>;

fn config(rank: usize, world_size: usize) -> (TcpConfig, Notes) {
    let notes = Notes::default();
    let log = notes.clone();
    let config = TcpConfig {
        rank,
        world_size,
        host: format!("host{rank}"),
        token: Token::new("the token").unwrap(),
        timeout: Duration::from_secs(20),
        join_timeout: Duration::from_secs(20),
        shared_memory: true,
        bytes_per_second: None,
        log: Arc::new(move |note| log.lock().unwrap().push(note.to_string())),
    };
    (config, notes)
}

/// Every rank's attempt to join, by rank.
fn attempts(configs: Vec<TcpConfig>) -> Vec<Result<TcpLinks, JoinError>> {
    let store = listener();
    let address = store.address().to_string();
    let mut store = Some(store);
    let threads: Vec<_> = configs
        .into_iter()
        .map(|config| {
            let (address, store) = (address.clone(), (config.rank == 0).then(|| store.take()));
            std::thread::spawn(move || match store.flatten() {
                Some(store) => TcpLinks::lead(store, listener(), config),
                None => TcpLinks::join(&address, listener(), config),
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn links(size: usize) -> Vec<TcpLinks> {
    let joined = attempts((0..size).map(|rank| config(rank, size).0).collect());
    joined.into_iter().map(|links| links.unwrap()).collect()
}

fn world(size: usize) -> Vec<Arc<dyn Links>> {
    links(size).into_iter().map(|links| Arc::new(links) as Arc<dyn Links>).collect()
}

/// The same, as if every rank were on a host of its own.
fn hosts(size: usize) -> Vec<Arc<dyn Links>> {
    let apart = |rank| TcpConfig { shared_memory: false, ..config(rank, size).0 };
    let joined = attempts((0..size).map(apart).collect()).into_iter();
    joined.map(|links| Arc::new(links.unwrap()) as Arc<dyn Links>).collect()
}

fn start(links: TcpLinks, timeout: Duration) -> (Arc<dyn Links>, Queue) {
    let links: Arc<dyn Links> = Arc::new(links);
    (links.clone(), queue(links, timeout))
}

#[test]
fn reductions_equal_the_sum_in_rank_order() {
    tests::check_reductions(world);
    tests::check_reductions(hosts);
}

#[test]
fn what_is_gathered_sent_and_broadcast_arrives() {
    tests::check_exchanges(world);
    tests::check_exchanges(hosts);
}

#[test]
fn ranks_that_disagree_are_told_so() {
    tests::check_disagreement(world);
}

#[test]
fn many_operations_are_in_flight() {
    tests::check_many_in_flight(world);
    tests::check_many_in_flight(hosts);
}

#[test]
fn large_buffers_in_both_directions_at_once_do_not_block() {
    // More than the system buffers, so a sender that waited for its peer would never come to read.
    for make in [world, hosts] {
        tests::on_ranks(make(2), |queue| {
            let count = 24 << 20;
            let input = data(queue.rank(), 1 << 10, Element::U8).repeat(count >> 10);
            let peer = 1 - queue.rank();
            let sent = queue.send(input.clone(), Element::U8, peer);
            let reduced = queue.all_reduce(input, Element::U8, Reduction::Max);
            sent.wait().unwrap();
            assert_eq!(reduced.wait().unwrap().len(), count);
            // All of it was sent before anybody looked for it, and most of it not through memory.
            let received: Vec<u8> = queue.receive(count, Element::U8, peer).wait().unwrap();
            assert!(received == data(peer, 1 << 10, Element::U8).repeat(count >> 10));
        });
    }
}

#[test]
fn ranks_of_one_host_share_memory_if_they_may() {
    let shares = |links: &[TcpLinks]| {
        let ways = links.iter().flat_map(|links| links.senders.iter().flatten());
        ways.map(|sender| sender.shares_memory()).collect::<Vec<_>>()
    };
    let of = |may: [bool; 2]| {
        let configs =
            [0, 1].map(|rank| TcpConfig { shared_memory: may[rank], ..config(rank, 2).0 });
        let links: Vec<_> = attempts(configs.into()).into_iter().map(Result::unwrap).collect();
        let shares = shares(&links);
        let closing = links.into_iter().map(|links| std::thread::spawn(move || links.close()));
        let closing: Vec<_> = closing.collect();
        closing.into_iter().for_each(|closed| closed.join().unwrap().unwrap());
        shares
    };
    assert_eq!(of([true, true]), [cfg!(target_os = "linux"); 2]);
    assert_eq!(of([true, false]), [false; 2]);
    assert_eq!(of([false, true]), [false; 2]);
}

/// 10 MB at 200 Mbit/s, half of them to each of two peers.
#[test]
fn a_limited_link_takes_its_time() {
    const HALF: usize = 5_000_000;
    let limited = |rank| TcpConfig { bytes_per_second: Some(25e6), ..config(rank, 3).0 };
    let joined = attempts((0..3).map(limited).collect()).into_iter().map(Result::unwrap);
    let world = joined.map(|links| Arc::new(links) as Arc<dyn Links>).collect();
    let seconds = tests::on_ranks(world, |queue| {
        queue.barrier().wait().unwrap();
        let start = std::time::Instant::now();
        if queue.rank() == 0 {
            let sent = [1, 2].map(|to| queue.send(vec![7; HALF], Element::U8, to));
            sent.into_iter().for_each(|sent| sent.wait().unwrap());
        } else {
            let received: Vec<u8> = queue.receive(HALF, Element::U8, 0).wait().unwrap();
            assert!(received == [7; HALF]);
        }
        start.elapsed().as_secs_f64()
    });
    let last = seconds.iter().copied().fold(0.0, f64::max);
    assert!((0.39..4.0).contains(&last), "{seconds:?}");
    assert!(seconds[0] < last, "who sends does not wait for the link: {seconds:?}");
}

#[test]
fn a_rank_that_drops_its_links_is_named_by_all() {
    let mut world = links(4);
    let dropped = world.remove(2);
    let waiting: Vec<_> = world
        .into_iter()
        .map(|links| {
            std::thread::spawn(move || {
                let (sender, failed) = std::sync::mpsc::channel();
                let sender = Mutex::new(sender);
                links.on_failure(Box::new(move |error| {
                    sender.lock().unwrap().send(error.to_string()).unwrap();
                }));
                let (_links, queue) = start(links, Duration::from_secs(20));
                let error = queue.barrier().wait().unwrap_err();
                (error, failed.recv_timeout(Duration::from_secs(20)).unwrap())
            })
        })
        .collect();
    drop(dropped);
    for thread in waiting {
        let (error, hooked) = thread.join().unwrap();
        assert!(
            matches!(&error, CommError::Lost { peer, cause, call: Some(call) }
                if peer.rank == 2 && peer.host == "host2" && cause.contains("ended early")
                && call.sequence == 1),
            "{error}"
        );
        assert!(hooked.contains("rank 2 on host2 is lost"), "{hooked}");
    }
}

#[test]
fn a_late_rank_is_named_and_not_those_that_wait_for_it() {
    let (sender, done) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let mut finished = Some(finished);
    let threads: Vec<_> = links(4)
        .into_iter()
        .map(|links| {
            let rank = links.rank();
            let sender = sender.clone();
            let finished = (rank == 3).then(|| finished.take());
            std::thread::spawn(move || {
                let (_links, queue) = start(links, Duration::from_secs(2));
                match finished.flatten() {
                    // Alive, but busy with something else.
                    Some(finished) => drop(finished.recv()),
                    None => {
                        let x = data(rank, 100_000, Element::F32);
                        let sum = queue.all_reduce(x, Element::F32, Reduction::Sum);
                        sender.send(sum.wait().unwrap_err()).unwrap();
                    }
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let error = done.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(&error, CommError::TimedOut { peer, .. } if peer.rank == 3), "{error}");
    }
    drop(finish);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_rank_that_does_not_close_is_named_by_those_that_do() {
    let short = |rank| TcpConfig { timeout: Duration::from_secs(2), ..config(rank, 3).0 };
    let mut world: Vec<TcpLinks> =
        attempts((0..3).map(short).collect()).into_iter().map(|links| links.unwrap()).collect();
    let stays = world.remove(1);
    let closing: Vec<_> =
        world.into_iter().map(|links| std::thread::spawn(move || links.close())).collect();
    for closed in closing {
        let error = closed.join().unwrap().unwrap_err();
        assert!(matches!(&error, CommError::TimedOut { peer, .. } if peer.rank == 1), "{error}");
    }
    drop(stays);
}

#[test]
fn missing_ranks_are_named_on_all_sides() {
    let short = |rank| TcpConfig { join_timeout: Duration::from_secs(2), ..config(rank, 4).0 };
    let outcome = attempts(vec![short(0), short(2)]);
    let errors: Vec<String> =
        outcome.into_iter().map(|joined| joined.err().unwrap().to_string()).collect();
    assert_eq!(errors[0], "ranks 1, 3 did not join within 2s");
    assert!(errors[1].contains("ranks 1, 3 did not join within 2s"), "{errors:?}");
}

#[test]
fn ranks_that_do_not_belong_are_refused_and_the_others_undisturbed() {
    let (leader, notes) = config(0, 2);
    let wrong_token = TcpConfig { token: Token::new("another").unwrap(), ..config(1, 2).0 };
    let no_such_rank = TcpConfig { rank: 2, world_size: 3, ..config(1, 2).0 };
    let mut outcome = {
        let store = listener();
        let address = store.address().to_string();
        let refused = |config| TcpLinks::join(&address, listener(), config).err().unwrap();
        let lead = std::thread::spawn(move || TcpLinks::lead(store, listener(), leader));
        let refusals = [refused(wrong_token), refused(no_such_rank)];
        assert!(
            matches!(&refusals[0], JoinError::Refused { reason: Refusal::Token, .. }),
            "{refusals:?}"
        );
        assert!(
            matches!(
                &refusals[1],
                JoinError::Refused {
                    rank: 2,
                    reason: Refusal::WorldSize { ours: 2, theirs: 3, .. },
                    ..
                }
            ),
            "{refusals:?}"
        );
        let joined = TcpLinks::join(&address, listener(), config(1, 2).0).unwrap();
        let twin = TcpConfig { host: "elsewhere".to_string(), ..config(1, 2).0 };
        let taken = refused(twin).to_string();
        assert!(
            taken.contains("elsewhere claims to be rank 1, but rank 1 on host1 has already joined"),
            "{taken}"
        );
        vec![lead.join().unwrap().unwrap(), joined]
    };
    let notes = notes.lock().unwrap().join("\n");
    for note in ["the tokens are not the same", "started for 3 ranks", "claims to be rank 1"] {
        assert!(notes.contains(note), "{notes}");
    }
    let member = outcome.pop().unwrap();
    let closing = std::thread::spawn(move || member.close());
    outcome[0].close().unwrap();
    closing.join().unwrap().unwrap();
}

/// Says something to a port, and returns all that it answers before it hangs up.
fn say(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The port may hang up before everything is said.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn strangers_are_refused_and_logged() {
    let store = listener();
    let address = store.address();
    let (leader, notes) = config(0, 2);
    let lead = std::thread::spawn(move || TcpLinks::lead(store, listener(), leader));

    assert!(say(address, b"GET / HTTP/1.1\r\nHost: rank0\r\n\r\n").is_empty());
    let random: Vec<u8> =
        (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(say(address, &random).is_empty());
    assert!(say(address, &[0xFF; 64]).is_empty(), "a huge length");
    let mut old = b"burn-titan links".to_vec();
    old.extend(0_u32.to_le_bytes());
    let answer = say(address, &old);
    assert_eq!(answer[16..20], VERSION.to_le_bytes(), "an old version is told the new one");
    let mut guess = b"burn-titan links".to_vec();
    guess.extend(VERSION.to_le_bytes());
    guess.extend([7; 64]);
    let answer = say(address, &guess);
    assert_eq!(answer.len(), 16 + 4 + 1 + 32 + 1, "no proof for who has none");
    // This one says nothing at all, and is in nobody's way.
    let silent = std::net::TcpStream::connect(address).unwrap();

    let member = TcpLinks::join(&address.to_string(), listener(), config(1, 2).0).unwrap();
    let leader = lead.join().unwrap().unwrap();
    // The store stays open, and refuses, while the ranks work.
    assert!(say(address, b"GET / HTTP/1.1\r\n\r\n").is_empty());
    tests::on_ranks(vec![Arc::new(leader), Arc::new(member)], |queue| {
        queue.barrier().wait().unwrap();
    });
    drop(silent);
    let notes = notes.lock().unwrap().join("\n");
    for note in ["begins with \"GET", "version 0 of", "the tokens are not the same"] {
        assert!(notes.contains(note), "{notes}");
    }
    assert!(notes.lines().count() >= 6, "{notes}");
}

/// A store that answers everything with these bytes.
fn false_store(answer: Vec<u8>) -> SocketAddr {
    let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 52]).unwrap();
        stream.write_all(&answer).unwrap();
        // Hangs up when the other does.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    address
}

#[test]
fn a_store_of_another_version_or_without_the_token_is_refused() {
    let answer = |version: u32, rest: usize| {
        let mut answer = b"burn-titan links".to_vec();
        answer.extend(version.to_le_bytes());
        answer.resize(answer.len() + rest, 0);
        answer
    };
    let refusal = |answer| {
        let store = false_store(answer).to_string();
        match TcpLinks::join(&store, listener(), config(1, 2).0).err() {
            Some(JoinError::Refused { rank: 1, reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal(answer(9, 33)), Refusal::Version { ours: VERSION, theirs: 9 });
    // Goes on to the end, but its proof is all zeros.
    assert_eq!(refusal(answer(VERSION, 33 + 1 + 32)), Refusal::Token);
}

#[test]
fn a_rank_that_ends_while_it_waits_may_come_again() {
    let store = listener();
    let address = store.address();
    let lead = std::thread::spawn(move || TcpLinks::lead(store, listener(), config(0, 3).0));
    let first = config(1, 3).0;
    runtime(&first).unwrap().block_on(async {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut stream = rendezvous::connect(&address.to_string(), &first, deadline).await.unwrap();
        let entry = Entry { host: first.host.clone(), address };
        let register = protocol::Control::Register { rank: 1, world_size: 3, entry };
        protocol::write(&mut stream, &register).await.unwrap();
    });
    let others: Vec<_> = [1, 2]
        .map(|rank| {
            let address = address.to_string();
            std::thread::spawn(move || TcpLinks::join(&address, listener(), config(rank, 3).0))
        })
        .into();
    let joined = std::iter::once(lead)
        .chain(others)
        .map(|rank| Arc::new(rank.join().unwrap().unwrap()) as Arc<dyn Links>);
    tests::on_ranks(joined.collect(), |queue| queue.barrier().wait().unwrap());
}
