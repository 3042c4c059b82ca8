//! The calls of MPI that a task becomes.
//!
//! Counts and offsets of MPI are C integers. Buffers beyond that go piece by piece, to and from where they
//! lie: an all-gather as broadcasts, a reduce-scatter as reductions to one rank after the other, an all-to-all as
//! messages.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use burn::tensor::Bytes;

use super::library::{Comm, Layout, Reduce, Request};
use super::wire::{Numbers, Wire};
use crate::host::segments::consecutive;
use crate::host::{Call, Element, Memory, Task};

/// The tag of messages between two ranks, and of the pieces of long all-to-alls, whose order is another's.
const MESSAGE: i32 = 1;
const PIECE: i32 = 2;

/// A group's communicator for data, as one of its ranks sees it.
#[derive(Debug, Clone, Copy)]
pub struct Channel {
    /// The library's.
    pub comm: Comm,
    /// This rank's place in it.
    pub rank: usize,
    /// Ranks in it.
    pub size: usize,
    /// Most numbers, or bytes, of one call.
    pub limit: usize,
}

/// Where buffers without elements are said to lie. An empty vector of bytes is at address 1, which to Open MPI is
/// `MPI_IN_PLACE`; and it refuses two buffers at the same address.
static NO_INPUT: AtomicU64 = AtomicU64::new(0);
static NO_OUTPUT: AtomicU64 = AtomicU64::new(0);

/// An operation of MPI and its memory, which must not be freed before all requests are done.
#[derive(Debug)]
pub struct Transfer {
    input: Numbers,
    output: Numbers,
    layouts: Vec<Layout>,
    wire: Option<Wire>,
    requests: Vec<Request>,
}

impl Transfer {
    /// Bytes that are moved: the input, and how many come out.
    fn of_bytes(input: Bytes, output: usize, call: &Call) -> Self {
        let output = Numbers::Bytes(Bytes::zeroed(output, call.element));
        let input = Numbers::Bytes(input);
        Self { input, output, layouts: Vec::new(), wire: None, requests: Vec::new() }
    }

    /// Elements that are reduced: the bytes of the input, and how many bytes of elements come out.
    fn of_elements(input: Bytes, output: usize, call: &Call) -> Self {
        let wire = Wire::new(call.element, call.reduction);
        let output = wire.zeros(output / call.element.size());
        let input = wire.widen(input);
        Self { input, output, layouts: Vec::new(), wire: Some(wire), requests: Vec::new() }
    }

    /// Whether all is done.
    ///
    /// # Errors
    /// What the library reports.
    pub fn is_done(&mut self) -> Result<bool, String> {
        are_done(&mut self.requests)
    }

    /// The result in a group of `size` ranks, after all is done.
    pub fn finish(self, size: usize) -> Bytes {
        match (self.wire, self.output) {
            (Some(wire), output) => wire.narrow(output, size),
            (None, Numbers::Bytes(bytes)) => bytes,
            (None, other) => unreachable!("bytes that are not added become {other:?}"),
        }
    }

    /// The input from this byte on.
    fn from(&self, byte: usize) -> *const u8 {
        if self.input.is_empty() {
            return NO_INPUT.as_ptr().cast();
        }
        self.input.as_ptr().wrapping_add(byte)
    }

    /// The output from this byte on.
    fn into(&mut self, byte: usize) -> *mut u8 {
        if self.output.is_empty() {
            return NO_OUTPUT.as_ptr().cast();
        }
        self.output.as_mut_ptr().wrapping_add(byte)
    }

    /// A range of the input's bytes is one of the output's.
    fn keep(&mut self, from: Range<usize>, into: Range<usize>) {
        if let (Numbers::Bytes(input), Numbers::Bytes(output)) = (&self.input, &mut self.output) {
            output[into].copy_from_slice(&input[from]);
        }
    }

    /// How the numbers are reduced, and the bytes of one.
    fn reduce(&self) -> (Reduce, usize) {
        let wire = self.wire.expect("elements that are reduced");
        (Reduce { number: wire.number(), max: wire.takes_max() }, wire.number().size())
    }
}

/// Whether all of these are done; those that are, are taken out.
///
/// # Errors
/// What the library reports.
pub fn are_done(requests: &mut Vec<Request>) -> Result<bool, String> {
    while let Some(request) = requests.last_mut() {
        if !request.is_done()? {
            return Ok(false);
        }
        requests.pop();
    }
    Ok(true)
}

/// Whether the buffers of a task are too long for one call.
pub fn is_long(task: &Task<Bytes>, call: &Call, limit: usize) -> bool {
    let sum = |lengths: &[usize]| lengths.iter().sum::<usize>();
    match task {
        Task::AllGather(_, lengths) => sum(lengths) > limit,
        Task::ReduceScatter(..) => call.count as usize > limit,
        Task::AllToAll(_, send, receive) => sum(send).max(sum(receive)) > limit,
        // The others go piece by piece in any case.
        _ => false,
    }
}

impl Channel {
    /// Begins a task; `long` is whether the buffers of any rank are too long for one call.
    ///
    /// # Errors
    /// What the library reports.
    pub fn begin(&self, call: &Call, task: Task<Bytes>, long: bool) -> Result<Transfer, String> {
        let count = call.count as usize;
        match task {
            Task::AllReduce(buffer) => {
                let bytes = buffer.len();
                started(Transfer::of_elements(buffer, bytes, call), |t| self.all_reduce(t, count))
            }
            Task::AllGather(buffer, lengths) => {
                let all = Transfer::of_bytes(buffer, lengths.iter().sum(), call);
                started(all, |t| match long {
                    false => self.all_gather(t, &lengths),
                    true => self.gather_pieces(t, &consecutive(&lengths)),
                })
            }
            Task::ReduceScatter(buffer, lengths) => {
                let own = Transfer::of_elements(buffer, lengths[self.rank], call);
                let counts: Vec<usize> =
                    lengths.iter().map(|bytes| bytes / call.element.size()).collect();
                started(own, |t| match long {
                    false => self.reduce_scatter(t, &counts),
                    true => self.reduce_pieces(t, &consecutive(&counts)),
                })
            }
            Task::AllToAll(buffer, send, receive) => {
                let all = Transfer::of_bytes(buffer, receive.iter().sum(), call);
                started(all, |t| match long {
                    false => self.all_to_all(t, &send, &receive),
                    true => self.exchange_pieces(t, &consecutive(&send), &consecutive(&receive)),
                })
            }
            Task::Broadcast(buffer) => {
                let root = call.root as usize;
                let buffer = if self.rank == root {
                    buffer
                } else {
                    Bytes::zeroed(call.bytes(), call.element)
                };
                let bytes = buffer.len();
                let whole = Transfer { output: Numbers::Bytes(buffer), ..empty(call) };
                started(whole, |t| self.broadcast(t, 0..bytes, root))
            }
            Task::Send(buffer, to) => {
                let bytes = buffer.len();
                started(Transfer::of_bytes(buffer, 0, call), |t| {
                    self.send(t, 0..bytes, to, MESSAGE)
                })
            }
            Task::Receive(from) => {
                let bytes = call.bytes();
                started(Transfer::of_bytes(nothing(), bytes, call), |t| {
                    self.receive(t, 0..bytes, from, MESSAGE)
                })
            }
            // That every rank is there, all know from its notice.
            Task::Barrier => Ok(empty(call)),
        }
    }

    fn all_reduce(&self, t: &mut Transfer, count: usize) -> Result<(), String> {
        let (reduce, size) = t.reduce();
        for piece in self.pieces(0..count) {
            let (from, into) = (t.from(piece.start * size), t.into(piece.start * size));
            // SAFETY: the transfer holds `count` numbers in and out, until the requests are done.
            t.requests.push(unsafe { self.comm.all_reduce(from, into, piece.len(), reduce)? });
        }
        Ok(())
    }

    fn all_gather(&self, t: &mut Transfer, lengths: &[usize]) -> Result<(), String> {
        t.layouts = vec![Layout::new(lengths)];
        let (from, into) = (t.from(0), t.into(0));
        // SAFETY: the transfer holds this rank's bytes, those of all ranks and the layout.
        let request =
            unsafe { self.comm.all_gather(from, lengths[self.rank], into, &t.layouts[0])? };
        t.requests.push(request);
        Ok(())
    }

    fn gather_pieces(&self, t: &mut Transfer, ranges: &[Range<usize>]) -> Result<(), String> {
        let own = ranges[self.rank].clone();
        t.keep(0..own.len(), own);
        for (root, range) in ranges.iter().enumerate() {
            self.broadcast(t, range.clone(), root)?;
        }
        Ok(())
    }

    fn reduce_scatter(&self, t: &mut Transfer, counts: &[usize]) -> Result<(), String> {
        let (reduce, _) = t.reduce();
        t.layouts = vec![Layout::new(counts)];
        let (from, into) = (t.from(0), t.into(0));
        // SAFETY: the transfer holds all ranks' numbers, room for the own ones, and the layout.
        let request = unsafe { self.comm.reduce_scatter(from, into, &t.layouts[0], reduce)? };
        t.requests.push(request);
        Ok(())
    }

    fn reduce_pieces(&self, t: &mut Transfer, ranges: &[Range<usize>]) -> Result<(), String> {
        let (reduce, size) = t.reduce();
        for (root, range) in ranges.iter().enumerate() {
            for piece in self.pieces(range.clone()) {
                // Only the root's output is used.
                let place = if root == self.rank { piece.start - range.start } else { 0 };
                let (from, into) = (t.from(piece.start * size), t.into(place * size));
                // SAFETY: the piece lies in the input, and if it is this rank's, within its output.
                let request = unsafe { self.comm.reduce(from, into, piece.len(), reduce, root)? };
                t.requests.push(request);
            }
        }
        Ok(())
    }

    fn all_to_all(
        &self,
        t: &mut Transfer,
        send: &[usize],
        receive: &[usize],
    ) -> Result<(), String> {
        t.layouts = vec![Layout::new(send), Layout::new(receive)];
        let (from, into) = (t.from(0), t.into(0));
        let [send, receive] = [&t.layouts[0], &t.layouts[1]];
        // SAFETY: the transfer holds the bytes of both layouts, and the layouts.
        let request = unsafe { self.comm.all_to_all(from, send, into, receive)? };
        t.requests.push(request);
        Ok(())
    }

    fn exchange_pieces(
        &self,
        t: &mut Transfer,
        send: &[Range<usize>],
        receive: &[Range<usize>],
    ) -> Result<(), String> {
        t.keep(send[self.rank].clone(), receive[self.rank].clone());
        for peer in (0..self.size).filter(|peer| *peer != self.rank) {
            self.receive(t, receive[peer].clone(), peer, PIECE)?;
            self.send(t, send[peer].clone(), peer, PIECE)?;
        }
        Ok(())
    }

    fn broadcast(&self, t: &mut Transfer, range: Range<usize>, root: usize) -> Result<(), String> {
        for piece in self.pieces(range) {
            let into = t.into(piece.start);
            // SAFETY: the range lies in the output.
            t.requests.push(unsafe { self.comm.broadcast(into, piece.len(), root)? });
        }
        Ok(())
    }

    fn send(
        &self,
        t: &mut Transfer,
        range: Range<usize>,
        to: usize,
        tag: i32,
    ) -> Result<(), String> {
        for piece in self.pieces(range) {
            let from = t.from(piece.start);
            // SAFETY: the range lies in the input.
            t.requests.push(unsafe { self.comm.send(from, piece.len(), to, tag)? });
        }
        Ok(())
    }

    fn receive(
        &self,
        t: &mut Transfer,
        range: Range<usize>,
        from: usize,
        tag: i32,
    ) -> Result<(), String> {
        for piece in self.pieces(range) {
            let into = t.into(piece.start);
            // SAFETY: the range lies in the output.
            t.requests.push(unsafe { self.comm.receive(into, piece.len(), from, tag)? });
        }
        Ok(())
    }

    /// Ranges of at most as much as one call takes.
    fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, limit) = (range.end, self.limit);
        range.step_by(limit).map(move |start| start..end.min(start + limit))
    }
}

fn nothing() -> Bytes {
    Bytes::zeroed(0, Element::U8)
}

fn empty(call: &Call) -> Transfer {
    Transfer::of_bytes(nothing(), 0, call)
}

/// The transfer, begun. Where that fails its memory is lost: the library may be using it.
fn started(
    mut transfer: Transfer,
    begin: impl FnOnce(&mut Transfer) -> Result<(), String>,
) -> Result<Transfer, String> {
    match begin(&mut transfer) {
        Ok(()) => Ok(transfer),
        Err(error) => {
            std::mem::forget(transfer);
            Err(error)
        }
    }
}
