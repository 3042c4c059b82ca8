//! Messages through the memory of a host.
//!
//! A message that finds no free slot in time goes over the socket instead, so a sender never waits
//! for its peer, whatever has become of it. Messages have numbers, by which the receiver brings those of
//! both ways in order. A receiver that has gone to sleep is told of the next message over the
//! socket. Payloads in memory have no checksum: nothing lies between the two processes that could damage
//! them and not everything else they have.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::frame::Header;
use super::super::mailbox::{Failure, Mailbox, Message, Source};
use super::super::payload::Payload;
use super::memory::{LONGEST, Lane, SLOTS, Slot};

/// How long a sender waits for a free slot, once.
const PATIENCE: Duration = Duration::from_millis(2);

/// The sending end of a lane. One thread at a time sends.
pub struct Outlet {
    lane: Lane,
    sent: u32,
    /// The receiver has not freed a slot for long: it does something else.
    jammed: bool,
}

impl Outlet {
    /// The end of a lane that nothing was sent over.
    pub fn new(lane: Lane) -> Self {
        Self { lane, sent: 0, jammed: false }
    }

    /// Sends a message, if it fits; whether it did.
    pub fn send(&mut self, header: &Header, payload: &[u8]) -> bool {
        if payload.len() > LONGEST {
            return false;
        }
        let Some(slot) = self.free_slot() else { return false };
        self.lane.fill(slot, &header.encode(), payload);
        self.lane.taken(slot).store(1, Relaxed);
        self.lane.order(self.sent).store(slot as u32, Relaxed);
        self.sent = self.sent.wrapping_add(1);
        // Before the look at the receiver, which looks here after it has said that it rests.
        self.lane.sent().store(self.sent, SeqCst);
        true
    }

    /// Whether the receiver wants to be told of the last message.
    pub fn must_ring(&self) -> bool {
        let resting = self.lane.resting();
        resting.load(SeqCst) != 0 && resting.swap(0, SeqCst) != 0
    }

    /// A slot that belongs to this end; the first of them, for it is the likeliest to be in the cache.
    fn free_slot(&mut self) -> Option<usize> {
        let until = Instant::now() + if self.jammed { Duration::ZERO } else { PATIENCE };
        loop {
            let free = (0..SLOTS).find(|slot| self.lane.taken(*slot).load(Acquire) == 0);
            self.jammed = free.is_none();
            if self.jammed && Instant::now() < until {
                std::thread::yield_now();
                continue;
            }
            return free;
        }
    }
}

/// The receiving end of a connection to a peer.
#[derive(Debug)]
pub struct Inlet {
    peer: usize,
    lane: Option<Lane>,
    state: Mutex<Arrivals>,
}

#[derive(Debug, Default)]
struct Arrivals {
    /// Messages taken from the lane; wraps.
    taken: u32,
    /// Messages brought to the mailbox.
    brought: u64,
    /// What came over the socket and has its turn later.
    early: VecDeque<(u64, u64, Message)>,
}

impl Inlet {
    /// The end of a new connection to `peer`.
    pub fn new(peer: usize, lane: Option<Lane>) -> Self {
        Self { peer, lane, state: Mutex::default() }
    }

    /// Brings what came over the socket, in its turn, and what has come through the memory.
    ///
    /// # Errors
    /// If a number is missing or the memory holds no messages.
    pub fn bring(
        &self,
        header: &Header,
        payload: Vec<u8>,
        mailbox: &Mailbox,
    ) -> Result<(), Failure> {
        let mut state = self.state();
        // Number 0 only says that there is something in the memory. Who sleeps must say anew that it rests, for
        // what was there may have been fetched before the peer told of it.
        if header.number == 0 {
            mailbox.wake();
        } else {
            let message =
                Message { call: header.call, step: header.step, payload: Payload::new(payload) };
            state.early.push_back((header.number, header.group, message));
        }
        self.advance(&mut state, mailbox)?;
        match state.early.front() {
            // What was sent before it is in the memory since before it was sent.
            Some((number, ..)) => Err(Failure::Damaged(format!(
                "message {number} came after message {}",
                state.brought
            ))),
            None => Ok(()),
        }
    }

    /// Brings what has come through the memory.
    ///
    /// # Errors
    /// If the memory holds no messages.
    pub fn fetch(&self, mailbox: &Mailbox) -> Result<(), Failure> {
        self.advance(&mut self.state(), mailbox)
    }

    /// Asks to be told of the next message in the memory.
    fn rest(&self) {
        if let Some(lane) = &self.lane {
            lane.resting().store(1, SeqCst);
        }
    }

    fn rests(&self) -> bool {
        self.lane.as_ref().is_none_or(|lane| lane.resting().load(SeqCst) != 0)
    }

    fn advance(&self, state: &mut Arrivals, mailbox: &Mailbox) -> Result<(), Failure> {
        loop {
            while let Some((group, message)) = state.next_early() {
                mailbox.put(self.peer, group, message);
                state.brought += 1;
            }
            let Some(lane) = &self.lane else { return Ok(()) };
            if lane.sent().load(SeqCst) == state.taken {
                return Ok(());
            }
            let damaged = |cause: String| Failure::Damaged(format!("in shared memory: {cause}"));
            let slot = lane.order(state.taken).load(Acquire) as usize;
            if slot >= SLOTS {
                return Err(damaged(format!("slot {slot}")));
            }
            let header = Header::decode(&lane.header(slot)).map_err(damaged)?;
            let Header { group, call, step, length, number, .. } = header;
            if length > LONGEST as u64 {
                return Err(damaged(format!("a payload of {length} bytes in a slot")));
            }
            if number != state.brought + 1 {
                // The ones before it are still on their way over the socket.
                return Ok(());
            }
            state.taken = state.taken.wrapping_add(1);
            state.brought += 1;
            let payload = Payload::new(Slot::new(lane.clone(), slot, length as usize));
            mailbox.put(self.peer, group, Message { call, step, payload });
        }
    }

    fn state(&self) -> MutexGuard<'_, Arrivals> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrivals {
    /// The first message of the socket, if it is its turn.
    fn next_early(&mut self) -> Option<(u64, Message)> {
        let next = self.brought + 1;
        let (_, group, message) = self.early.pop_front_if(|(number, ..)| *number == next)?;
        Some((group, message))
    }
}

/// What the mailbox of a rank fetches from: by rank.
#[derive(Debug)]
pub struct Inlets(pub Vec<Option<Arc<Inlet>>>);

impl Inlets {
    fn get(&self, from: usize) -> Option<&Inlet> {
        self.0.get(from)?.as_deref().filter(|inlet| inlet.lane.is_some())
    }
}

impl Source for Inlets {
    fn covers(&self, from: usize) -> bool {
        self.get(from).is_some()
    }

    fn fetch(&self, from: usize, mailbox: &Mailbox) {
        if let Some(Err(failure)) = self.get(from).map(|inlet| inlet.fetch(mailbox)) {
            mailbox.fail(from, failure);
        }
    }

    fn rest(&self, from: usize) {
        if let Some(inlet) = self.get(from) {
            inlet.rest();
        }
    }

    fn rests(&self, from: usize) -> bool {
        self.get(from).is_some_and(Inlet::rests)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::super::call::{Call, Kind};
    use super::super::super::element::{Element, Reduction};
    use super::super::memory::Memory;
    use super::*;

    fn header(number: u64, length: usize) -> Header {
        let call = Call {
            kind: Kind::SendReceive,
            element: Element::U8,
            reduction: Reduction::Sum,
            root: 0,
            count: length as u64,
            shape: 0,
            sequence: number,
        };
        Header { group: 1, call, step: 0, length: length as u64, number, checksum: 0 }
    }

    fn ends() -> (Outlet, Inlet, Lane) {
        let (memory, ..) = Memory::make().unwrap();
        let lane = memory.lane(true);
        (Outlet::new(lane.clone()), Inlet::new(3, Some(lane.clone())), lane)
    }

    fn take(mailbox: &Mailbox, number: u64) -> Message {
        mailbox.take(3, 1, &header(number, 0).call, Instant::now()).unwrap()
    }

    #[test]
    fn messages_of_both_ways_come_in_order() {
        let (mut outlet, inlet, _) = ends();
        let mailbox = Mailbox::default();
        let mut number = 0;
        // More than once around the lane.
        for round in 0..2 * SLOTS {
            let first = number + 1;
            let through_memory = |outlet: &mut Outlet, number: u64| {
                outlet.send(&header(number, 3), &[number as u8; 3])
            };
            while through_memory(&mut outlet, number + 1) {
                number += 1;
            }
            assert_eq!(number + 1 - first, SLOTS as u64, "round {round}");
            number += 1;
            inlet.bring(&header(number, 3), vec![number as u8; 3], &mailbox).unwrap();
            for number in first..=number {
                let message = take(&mailbox, number);
                assert_eq!(
                    (message.call.sequence, &*message.payload),
                    (number, &[number as u8; 3][..])
                );
            }
        }
    }

    #[test]
    fn a_message_in_memory_waits_for_one_on_the_socket() {
        let (mut outlet, inlet, _) = ends();
        let mailbox = Mailbox::default();
        assert!(!outlet.send(&header(1, LONGEST + 1), &vec![0; LONGEST + 1]), "too long");
        assert!(outlet.send(&header(2, 0), &[]));
        inlet.fetch(&mailbox).unwrap();
        let none = mailbox.take(3, 1, &header(1, 0).call, Instant::now());
        assert!(none.is_err());
        inlet.bring(&header(1, 1), vec![5], &mailbox).unwrap();
        assert_eq!(*take(&mailbox, 1).payload, [5]);
        assert!(take(&mailbox, 2).payload.is_empty());
    }

    #[test]
    fn a_receiver_that_rests_is_told_once() {
        let (mut outlet, inlet, _) = ends();
        assert!(outlet.send(&header(1, 0), &[]) && !outlet.must_ring());
        inlet.rest();
        assert!(outlet.send(&header(2, 0), &[]) && outlet.must_ring());
        assert!(outlet.send(&header(3, 0), &[]) && !outlet.must_ring());
    }

    /// The peer looks whether this end rests only after the message was fetched and the end rests again: it then
    /// tells of a message that is gone, and must tell of the next one nevertheless.
    #[test]
    fn a_receiver_that_was_told_too_late_is_told_again() {
        let (mut outlet, inlet, lane) = ends();
        let inlet = Arc::new(inlet);
        let mailbox = Arc::new(Mailbox::default());
        mailbox.fetch_from(Arc::new(Inlets(vec![None, None, None, Some(inlet.clone())])));
        let until = Instant::now() + Duration::from_secs(20);
        let wait_for_rest = || {
            while lane.resting().load(SeqCst) == 0 {
                assert!(Instant::now() < until, "the receiver does not rest");
                std::thread::yield_now();
            }
        };
        let waits = mailbox.clone();
        let taker = std::thread::spawn(move || waits.take(3, 1, &header(1, 0).call, until));
        for _ in 0..100 {
            wait_for_rest();
            assert!(outlet.must_ring());
            inlet.bring(&header(0, 0), Vec::new(), &mailbox).unwrap();
        }
        wait_for_rest();
        assert!(outlet.send(&header(1, 0), &[]) && outlet.must_ring());
        inlet.bring(&header(0, 0), Vec::new(), &mailbox).unwrap();
        assert!(taker.join().unwrap().is_ok());
    }

    #[test]
    fn what_is_no_message_is_damage() {
        let mailbox = Mailbox::default();
        let damaged = |result: Result<(), Failure>| {
            assert!(matches!(&result, Err(Failure::Damaged(_))), "{result:?}");
        };
        let (_, inlet, _) = ends();
        damaged(inlet.bring(&header(2, 0), Vec::new(), &mailbox));
        let (_, inlet, lane) = ends();
        lane.sent().store(1, SeqCst);
        damaged(inlet.fetch(&mailbox));
        lane.order(0).store(SLOTS as u32, SeqCst);
        damaged(inlet.fetch(&mailbox));
        lane.order(0).store(0, SeqCst);
        lane.fill(0, &header(1, LONGEST + 1).encode(), &[]);
        damaged(inlet.fetch(&mailbox));
    }
}
