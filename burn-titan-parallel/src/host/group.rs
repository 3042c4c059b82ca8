//! The collective operations of a group of ranks, on host buffers.
//!
//! Large buffers: a reduction is scattered (each rank gets everybody's share of its range, and adds
//! them in rank order), then gathered around a ring (Thakur, Rabenseifner and Gropp, 2005); every rank sends and
//! receives `2 (n - 1) / n` of the buffer. Small ones: every rank sends all it has to every other, which takes
//! one message's time. A broadcast is a binomial tree; a barrier is dissemination. Since every sum is taken in
//! rank order, the result does not depend on which way was taken.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::{Call, Kind};
use super::element::reduce;
use super::error::CommError;
use super::links::Links;
use super::mailbox::{Failure, Message, NoMessage};
use super::payload::Payload;

/// Up to this many bytes a reduction sends everything to everybody.
const SMALL: usize = 32 << 10;

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

    /// The reduction of all ranks' buffers (of equal length), for all of them.
    ///
    /// # Errors
    /// If a peer is lost or late, or makes another call.
    pub fn all_reduce(&self, call: &Call, buffer: Vec<u8>) -> Result<Vec<u8>, CommError> {
        let bytes = buffer.len();
        if bytes <= SMALL || self.size() == 1 {
            let parts = self.exchange_all(call, 0, &buffer.into())?;
            return Ok(self.reduced(call, &parts, bytes));
        }
        let ranges = self.even_ranges(call, bytes);
        let own = self.scatter(call, &buffer.into(), &ranges)?;
        self.ring_gather(call, own, &ranges)
    }

    /// The ranks' buffers one after the other; `lengths` are their bytes.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn all_gather(
        &self,
        call: &Call,
        buffer: Vec<u8>,
        lengths: &[usize],
    ) -> Result<Vec<u8>, CommError> {
        self.ring_gather(call, buffer, &consecutive(lengths))
    }

    /// This rank's range of the reduction; `lengths` are the bytes of the ranges.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn reduce_scatter(
        &self,
        call: &Call,
        buffer: Vec<u8>,
        lengths: &[usize],
    ) -> Result<Vec<u8>, CommError> {
        self.scatter(call, &buffer.into(), &consecutive(lengths))
    }

    /// Sends each rank its range of the buffer (`send` are their bytes) and returns the ranges that the
    /// ranks have sent to this one (`receive` are their bytes), in the order of ranks.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn all_to_all(
        &self,
        call: &Call,
        buffer: Vec<u8>,
        send: &[usize],
        receive: &[usize],
    ) -> Result<Vec<u8>, CommError> {
        let parts = self.exchange(call, &buffer.into(), &consecutive(send))?;
        let mut all = Vec::with_capacity(receive.iter().sum());
        for (from, (part, length)) in parts.iter().zip(receive).enumerate() {
            self.check_length(call, from, part, *length)?;
            all.extend_from_slice(part);
        }
        Ok(all)
    }

    /// The root's buffer, for all; other ranks' buffers are ignored.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn broadcast(&self, call: &Call, buffer: Vec<u8>) -> Result<Vec<u8>, CommError> {
        let (size, root) = (self.size(), call.root as usize);
        let place = (self.rank + size - root) % size;
        let mut payload: Payload = buffer.into();
        // The highest set bit of a place leads to its parent.
        let mut reach = 1;
        while reach < size {
            if place < reach {
                if place + reach < size {
                    self.send(call, (place + reach + root) % size, 0, payload.clone())?;
                }
            } else if place < 2 * reach {
                payload = self.receive(call, (place - reach + root) % size, 0)?;
            }
            reach *= 2;
        }
        Ok(payload.into_vec())
    }

    /// Sends a buffer to a rank of the group.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn send_to(&self, call: &Call, to: usize, buffer: Vec<u8>) -> Result<(), CommError> {
        self.send(call, to, 0, buffer.into())
    }

    /// The buffer that a rank of the group sends.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn receive_from(&self, call: &Call, from: usize) -> Result<Vec<u8>, CommError> {
        Ok(self.receive(call, from, 0)?.into_vec())
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
            self.send(call, (self.rank + distance) % size, step, Vec::new().into())?;
            self.receive(call, (self.rank + size - distance) % size, step)?;
            distance *= 2;
            step += 1;
        }
        Ok(())
    }

    /// Each rank's share of this rank's range, reduced.
    fn scatter(
        &self,
        call: &Call,
        buffer: &Payload,
        ranges: &[Range<usize>],
    ) -> Result<Vec<u8>, CommError> {
        let parts = self.exchange(call, buffer, ranges)?;
        Ok(self.reduced(call, &parts, ranges[self.rank].len()))
    }

    fn reduced(&self, call: &Call, parts: &[Payload], bytes: usize) -> Vec<u8> {
        let mut output = vec![0; bytes];
        let inputs: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        reduce(call.element, call.reduction, &inputs, &mut output);
        output
    }

    /// Sends everybody the whole buffer; returns everybody's, in the order of ranks.
    fn exchange_all(
        &self,
        call: &Call,
        step: u32,
        buffer: &Payload,
    ) -> Result<Vec<Payload>, CommError> {
        for to in self.others() {
            self.send(call, to, step, buffer.clone())?;
        }
        let parts = (0..self.size()).map(|from| {
            if from == self.rank {
                return Ok(buffer.clone());
            }
            let part = self.receive(call, from, step)?;
            self.check_length(call, from, &part, buffer.len())?;
            Ok(part)
        });
        parts.collect()
    }

    /// Sends each rank its range of the buffer; returns what the ranks have sent, in their order.
    fn exchange(
        &self,
        call: &Call,
        buffer: &Payload,
        ranges: &[Range<usize>],
    ) -> Result<Vec<Payload>, CommError> {
        for to in self.others() {
            self.send(call, to, 0, buffer.slice(ranges[to].clone()))?;
        }
        let reduces = matches!(call.kind, Kind::AllReduce | Kind::ReduceScatter);
        let parts = (0..self.size()).map(|from| {
            if from == self.rank {
                return Ok(buffer.slice(ranges[from].clone()));
            }
            let part = self.receive(call, from, 0)?;
            if reduces {
                self.check_length(call, from, &part, ranges[self.rank].len())?;
            }
            Ok(part)
        });
        parts.collect()
    }

    /// Passes the ranks' buffers around the ring until everybody has all of them.
    fn ring_gather(
        &self,
        call: &Call,
        own: Vec<u8>,
        ranges: &[Range<usize>],
    ) -> Result<Vec<u8>, CommError> {
        let size = self.size();
        let mut all = vec![0; ranges.last().map_or(0, |range| range.end)];
        all[ranges[self.rank].clone()].copy_from_slice(&own);
        let (next, previous) = ((self.rank + 1) % size, (self.rank + size - 1) % size);
        let mut passing: Payload = own.into();
        for step in 1..size {
            self.send(call, next, step as u32, passing)?;
            let owner = (self.rank + size - step) % size;
            passing = self.receive(call, previous, step as u32)?;
            self.check_length(call, previous, &passing, ranges[owner].len())?;
            all[ranges[owner].clone()].copy_from_slice(&passing);
        }
        Ok(all)
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        // Each rank begins with another peer, so that nobody is asked by all at once.
        (1..self.size()).map(|i| (self.rank + i) % self.size())
    }

    /// Ranges of whole elements, as even as can be.
    fn even_ranges(&self, call: &Call, bytes: usize) -> Vec<Range<usize>> {
        let size = call.element.size();
        let lengths: Vec<usize> = (0..self.size())
            .map(|r| crate::placement::shard_range(bytes / size, self.size(), r).len() * size)
            .collect();
        consecutive(&lengths)
    }

    fn send(&self, call: &Call, to: usize, step: u32, payload: Payload) -> Result<(), CommError> {
        let message = Message { call: *call, step, payload };
        let world = self.members[to];
        self.links.send(world, self.id, message).map_err(|why| self.lost(world, why, call))
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

/// Ranges of these lengths, one after the other.
fn consecutive(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    lengths
        .iter()
        .map(|length| {
            start += length;
            start - length..start
        })
        .collect()
}
