//! The collective operations of a group of ranks, on host buffers.
//!
//! Buffers go in segments that stay in the cache, some of them ahead of what has come from the peers. Large
//! reductions go block by block, in place: every rank gets everybody's share of its piece of a block, adds them
//! in rank order, and sends the result to everybody; every rank sends and receives `2 (n - 1) / n` of the
//! buffer (Thakur, Rabenseifner and Gropp, 2005). Small ones: every rank sends all it has to every other, which
//! takes one message's time. A broadcast is a binomial tree; a barrier is dissemination. Since every sum is
//! taken in rank order, the result does not depend on which way was taken.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::Call;
use super::element::reduce;
use super::error::CommError;
use super::links::Links;
use super::mailbox::{Failure, NoMessage};
use super::payload::Payload;
use super::segments::{SEGMENT, consecutive, cut, segment, segments};
use crate::placement::shard_range;

/// Up to this many bytes a reduction sends everything to everybody.
pub(super) const SMALL: usize = 32 << 10;

/// Segments that are sent to a peer before the first of its own must have come.
pub(super) const AHEAD: usize = 2;

/// Marks the messages between two ranks of a group.
const PAIRS: u64 = 1 << 63;

/// A group of ranks, as one of them sees it. One thread calls its operations, one after the other.
#[derive(Clone)]
pub struct Group {
    links: Arc<dyn Links>,
    /// World ranks of the members, in the group's order.
    members: Vec<usize>,
    /// This rank's place in it.
    rank: usize,
    id: u64,
    timeout: Duration,
}

impl Group {
    /// The group of these world ranks, of which this rank is one.
    ///
    /// `id`, below 2^63, tells the group's messages from other groups': all members must give the same one, and
    /// no other group with a common member may have it. `timeout` is how long an operation waits for a peer.
    ///
    /// # Panics
    /// If this rank is no member.
    pub fn new(links: Arc<dyn Links>, members: Vec<usize>, id: u64, timeout: Duration) -> Self {
        let own = links.rank();
        let rank = members.iter().position(|rank| *rank == own).expect("a member of the group");
        Self { links, members, rank, id, timeout }
    }

    /// The same ranks, for messages between two of them: these do not mix with the group's operations.
    pub(super) fn for_pairs(&self) -> Self {
        Self { id: self.id ^ PAIRS, ..self.clone() }
    }

    /// This rank's place in the group.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The links that the group runs over.
    pub fn links(&self) -> &Arc<dyn Links> {
        &self.links
    }

    /// The reduction of all ranks' buffers (of equal length), for all of them, in place.
    ///
    /// # Errors
    /// If a peer is lost or late, or makes another call.
    pub fn all_reduce(&self, call: &Call, buffer: &mut [u8]) -> Result<(), CommError> {
        if buffer.len() <= SMALL || self.size() == 1 {
            self.send_to_all(call, 0, buffer)?;
            self.reduce_with(call, 0, buffer)
        } else {
            self.reduce_blocks(call, buffer)
        }
    }

    /// The ranks' buffers one after the other, into `all`; `lengths` are their bytes.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn all_gather(
        &self,
        call: &Call,
        buffer: &[u8],
        lengths: &[usize],
        all: &mut [u8],
    ) -> Result<(), CommError> {
        let ranges = consecutive(lengths);
        let send = vec![0..buffer.len(); self.size()];
        all[ranges[self.rank].clone()].copy_from_slice(buffer);
        self.exchange(call, buffer, &send, all, &ranges)
    }

    /// This rank's range of the reduction, into `own`; `lengths` are the bytes of the ranges.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn reduce_scatter(
        &self,
        call: &Call,
        buffer: &[u8],
        lengths: &[usize],
        own: &mut [u8],
    ) -> Result<(), CommError> {
        let ranges = consecutive(lengths);
        own.copy_from_slice(&buffer[ranges[self.rank].clone()]);
        let most = segments(&ranges);
        for round in 0..most + AHEAD {
            for to in self.others() {
                self.send_segment(call, to, round, &buffer[ranges[to].clone()])?;
            }
            if let Some(round) = round.checked_sub(AHEAD)
                && let Some(range) = segment(own.len(), round)
            {
                self.reduce_with(call, round as u32, &mut own[range])?;
            }
        }
        Ok(())
    }

    /// Sends each rank its range of the buffer (`send` are their bytes) and puts the ranges that the
    /// ranks have sent to this one (`receive` are their bytes) into `all`, in the order of ranks.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn all_to_all(
        &self,
        call: &Call,
        buffer: &[u8],
        send: &[usize],
        receive: &[usize],
        all: &mut [u8],
    ) -> Result<(), CommError> {
        let (send, receive) = (consecutive(send), consecutive(receive));
        all[receive[self.rank].clone()].copy_from_slice(&buffer[send[self.rank].clone()]);
        self.exchange(call, buffer, &send, all, &receive)
    }

    /// The root's buffer, for all; what other ranks' buffers held is lost.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn broadcast(&self, call: &Call, buffer: &mut [u8]) -> Result<(), CommError> {
        let (size, root) = (self.size(), call.root as usize);
        let place = (self.rank + size - root) % size;
        let at = |place: usize| (place + root) % size;
        // The highest set bit of a place leads to its parent.
        let reach: usize = if place == 0 { 1 } else { 2 << place.ilog2() };
        let children = || (reach.trailing_zeros()..).map(|bit| place + (1 << bit));
        for (step, range) in (0..).zip(cut(buffer.len())) {
            let part = &mut buffer[range];
            if place != 0 {
                self.receive_into(call, at(place - reach / 2), step, part)?;
            }
            for child in children().take_while(|child| *child < size) {
                self.send(call, at(child), step, part)?;
            }
        }
        Ok(())
    }

    /// Sends a buffer to a rank of the group.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn send_to(&self, call: &Call, to: usize, buffer: &[u8]) -> Result<(), CommError> {
        for (step, range) in (0..).zip(cut(buffer.len())) {
            self.send(call, to, step, &buffer[range])?;
        }
        Ok(())
    }

    /// The buffer that a rank of the group sends, into `buffer`.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn receive_from(
        &self,
        call: &Call,
        from: usize,
        buffer: &mut [u8],
    ) -> Result<(), CommError> {
        for (step, range) in (0..).zip(cut(buffer.len())) {
            self.receive_into(call, from, step, &mut buffer[range])?;
        }
        Ok(())
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn barrier(&self, call: &Call) -> Result<(), CommError> {
        let size = self.size();
        let mut distance = 1;
        let mut step = 0;
        while distance < size {
            self.send(call, (self.rank + distance) % size, step, &[])?;
            self.receive(call, (self.rank + size - distance) % size, step)?;
            distance *= 2;
            step += 1;
        }
        Ok(())
    }

    /// Reduces block by block, and sends every result at once. The order in which a rank sends its pieces
    /// to another is that in which the other takes them.
    fn reduce_blocks(&self, call: &Call, buffer: &mut [u8]) -> Result<(), CommError> {
        let (bytes, longest) = (buffer.len(), self.size() * SEGMENT);
        let blocks = bytes.div_ceil(longest);
        let pieces = |block: usize| {
            let start = block * longest;
            self.even_ranges(call, start..bytes.min(start + longest))
        };
        let (shares, results) = (|block| 2 * block as u32, |block| 2 * block as u32 + 1);
        for block in 0..blocks + 2 * AHEAD {
            if block < blocks {
                let pieces = pieces(block);
                for to in self.others() {
                    self.send(call, to, shares(block), &buffer[pieces[to].clone()])?;
                }
            }
            if let Some(block) = block.checked_sub(AHEAD).filter(|block| *block < blocks) {
                let own = &mut buffer[pieces(block)[self.rank].clone()];
                self.reduce_with(call, shares(block), own)?;
                self.send_to_all(call, results(block), own)?;
            }
            if let Some(block) = block.checked_sub(2 * AHEAD) {
                let pieces = pieces(block);
                for from in self.others() {
                    let piece = &mut buffer[pieces[from].clone()];
                    self.receive_into(call, from, results(block), piece)?;
                }
            }
        }
        Ok(())
    }

    /// Reduces the other ranks' messages of this step and the buffer, into the buffer.
    fn reduce_with(&self, call: &Call, step: u32, buffer: &mut [u8]) -> Result<(), CommError> {
        let others = (0..self.size()).filter(|rank| *rank != self.rank);
        let parts = others.map(|from| {
            let part = self.receive(call, from, step)?;
            self.check_length(call, from, &part, buffer.len())?;
            Ok(part)
        });
        let parts: Vec<Payload> = parts.collect::<Result<_, CommError>>()?;
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        reduce(call.element, call.reduction, &parts, self.rank, buffer);
        Ok(())
    }

    /// Sends each other rank its range of `from`, and receives what they send into their ranges of `into`.
    fn exchange(
        &self,
        call: &Call,
        from: &[u8],
        send: &[Range<usize>],
        into: &mut [u8],
        receive: &[Range<usize>],
    ) -> Result<(), CommError> {
        for round in 0..segments(send).max(segments(receive)) + AHEAD {
            for to in self.others() {
                self.send_segment(call, to, round, &from[send[to].clone()])?;
            }
            if let Some(round) = round.checked_sub(AHEAD) {
                for from in self.others() {
                    let part = &mut into[receive[from].clone()];
                    self.receive_segment(call, from, round, part)?;
                }
            }
        }
        Ok(())
    }

    /// Sends this segment of the part, if it has so many.
    fn send_segment(
        &self,
        call: &Call,
        to: usize,
        round: usize,
        part: &[u8],
    ) -> Result<(), CommError> {
        match segment(part.len(), round) {
            Some(range) => self.send(call, to, round as u32, &part[range]),
            None => Ok(()),
        }
    }

    /// Receives this segment of the part, if it has so many.
    fn receive_segment(
        &self,
        call: &Call,
        from: usize,
        round: usize,
        part: &mut [u8],
    ) -> Result<(), CommError> {
        match segment(part.len(), round) {
            Some(range) => self.receive_into(call, from, round as u32, &mut part[range]),
            None => Ok(()),
        }
    }

    fn receive_into(
        &self,
        call: &Call,
        from: usize,
        step: u32,
        into: &mut [u8],
    ) -> Result<(), CommError> {
        let part = self.receive(call, from, step)?;
        self.check_length(call, from, &part, into.len())?;
        into.copy_from_slice(&part);
        Ok(())
    }

    fn send_to_all(&self, call: &Call, step: u32, payload: &[u8]) -> Result<(), CommError> {
        self.others().try_for_each(|to| self.send(call, to, step, payload))
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        // Each rank begins with another peer, so that nobody is asked by all at once.
        (1..self.size()).map(|i| (self.rank + i) % self.size())
    }

    /// The ranks' pieces of a range: whole elements, as even as can be.
    fn even_ranges(&self, call: &Call, range: Range<usize>) -> Vec<Range<usize>> {
        let size = call.element.size();
        let piece = |rank| {
            let piece = shard_range(range.len() / size, self.size(), rank);
            range.start + piece.start * size..range.start + piece.end * size
        };
        (0..self.size()).map(piece).collect()
    }

    fn send(&self, call: &Call, to: usize, step: u32, payload: &[u8]) -> Result<(), CommError> {
        let world = self.members[to];
        let sent = self.links.send(world, self.id, call, step, payload);
        sent.map_err(|why| self.lost(world, why, call))
    }

    fn receive(&self, call: &Call, from: usize, step: u32) -> Result<Payload, CommError> {
        let world = self.members[from];
        let deadline = Instant::now() + self.timeout;
        let mailbox = self.links.mailbox();
        let message = mailbox.take(world, self.id, call, deadline).map_err(|none| match none {
            NoMessage::TimedOut => self.lost(world, Failure::Late(self.timeout), call),
            NoMessage::Lost(peer, failure) => self.lost(peer, failure, call),
            NoMessage::Closed(reason) => CommError::Closed(reason),
        })?;
        if message.call != *call || message.step != step {
            return Err(CommError::Disagree {
                peer: self.links.peer(world),
                rank: self.links.rank(),
                ours: Box::new(*call),
                theirs: Box::new(message.call),
            });
        }
        Ok(message.payload)
    }

    fn lost(&self, suspect: usize, failure: Failure, call: &Call) -> CommError {
        let (culprit, failure) = self.links.judge(suspect, failure);
        CommError::of(self.links.peer(culprit), failure, Some(*call))
    }

    fn check_length(
        &self,
        call: &Call,
        from: usize,
        part: &Payload,
        want: usize,
    ) -> Result<(), CommError> {
        if part.len() == want {
            return Ok(());
        }
        Err(CommError::Corrupt {
            peer: self.links.peer(self.members[from]),
            cause: format!("{} bytes instead of {want}", part.len()),
            call: Some(*call),
        })
    }
}
