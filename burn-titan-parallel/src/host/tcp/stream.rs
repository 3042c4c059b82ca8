//! Messages of buffers over one connection to a peer.
//!
//! A message is written from where it lies, header and payload in one system call. The sender writes
//! itself as long as the system takes bytes, and leaves a copy of the rest to a task: `send` never waits
//! for the peer, so two ranks that send each other more than the system buffers do not wait for each other.
//! Between processes of one host, messages go through memory where they can ([`super::lane`]).
//! Buffer sizes are left to the system: it tunes them up to several MiB, while sizes that are set by
//! hand stay below `net.core.rmem_max`, which is often 208 KiB.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::super::call::{Call, Kind};
use super::super::element::{Element, Reduction};
use super::super::frame::{HEADER, Header};
use super::super::mailbox::{Failure, Mailbox};
use super::lane::{Inlet, Outlet};
use super::protocol::{damaged, failure};
use super::throttle::{PIECE, Throttle};

/// Bytes that are read before their checksum is taken, while they are still in the cache.
const CHUNK: usize = 256 << 10;

/// The sending half of a connection.
pub struct Sender {
    /// Held while a message gets its number and its place.
    way: Mutex<Way>,
    stream: OwnedWriteHalf,
    outbox: Mutex<Outbox>,
    filled: Notify,
    /// Where the link is slower than the system's: all of the rank's senders share it.
    throttle: Option<Arc<Throttle>>,
}

struct Way {
    /// Messages sent ever.
    sent: u64,
    outlet: Option<Outlet>,
}

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Outgoing>,
    /// Somebody writes: nobody else may.
    busy: bool,
    broken: Option<Failure>,
}

/// What is left of a message.
struct Outgoing(Vec<u8>);

impl Sender {
    /// The sender over this half, and through memory where there is some; its task runs as long as the runtime.
    pub fn new(
        stream: OwnedWriteHalf,
        outlet: Option<Outlet>,
        throttle: Option<Arc<Throttle>>,
    ) -> Arc<Self> {
        let way = Mutex::new(Way { sent: 0, outlet });
        let (outbox, filled) = (Mutex::default(), Notify::new());
        let sender = Arc::new(Self { way, stream, outbox, filled, throttle });
        tokio::spawn(sender.clone().drain());
        sender
    }

    /// Whether messages go through memory.
    #[cfg(test)]
    pub fn shares_memory(&self) -> bool {
        self.way.lock().unwrap_or_else(PoisonError::into_inner).outlet.is_some()
    }

    /// Sends a message, after those that were sent before. Does not wait for the peer.
    ///
    /// # Errors
    /// If the connection has broken before.
    pub fn send(
        &self,
        group: u64,
        call: &Call,
        step: u32,
        payload: &[u8],
    ) -> std::result::Result<(), Failure> {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &self.outbox().broken {
            return Err(failure.clone());
        }
        way.sent += 1;
        let (number, length) = (way.sent, payload.len() as u64);
        let header = Header { group, call: *call, step, length, number, checksum: 0 };
        if let Some(outlet) = &mut way.outlet
            && outlet.send(&header, payload)
        {
            if outlet.must_ring() {
                self.post(&bell(), &[]);
            }
        } else {
            self.post(&Header { checksum: crc32c::crc32c(payload), ..header }, payload);
        }
        Ok(())
    }

    /// Writes a message to the socket, after those that are left.
    fn post(&self, header: &Header, payload: &[u8]) {
        let header = header.encode();
        let mut outbox = self.outbox();
        if outbox.busy || !outbox.queue.is_empty() || self.throttle.is_some() {
            outbox.queue.push_back(Outgoing::rest(&header, payload, 0));
            drop(outbox);
            self.filled.notify_one();
            return;
        }
        outbox.busy = true;
        drop(outbox);
        let mut sent = 0;
        let written = write(&self.stream, &header, payload, &mut sent);
        let mut outbox = self.outbox();
        outbox.busy = false;
        match written {
            Ok(true) => {}
            Ok(false) => outbox.queue.push_front(Outgoing::rest(&header, payload, sent)),
            Err(error) => outbox.broken = Some(failure(&error)),
        }
        let more = !outbox.queue.is_empty();
        drop(outbox);
        if more {
            self.filled.notify_one();
        }
    }

    /// Writes what senders have left.
    async fn drain(self: Arc<Self>) {
        loop {
            let Some(outgoing) = self.next() else {
                self.filled.notified().await;
                continue;
            };
            let written = self.write_out(&outgoing.0).await;
            let mut outbox = self.outbox();
            outbox.busy = false;
            if let Err(error) = written {
                outbox.broken = Some(failure(&error));
                outbox.queue.clear();
                return;
            }
        }
    }

    /// Writes all of it, as fast as the link and the peer take it.
    async fn write_out(&self, bytes: &[u8]) -> Result<()> {
        let most = if self.throttle.is_some() { PIECE } else { usize::MAX };
        for piece in bytes.chunks(most) {
            if let Some(throttle) = &self.throttle {
                throttle.pass(piece.len()).await;
            }
            let mut sent = 0;
            while !write(&self.stream, piece, &[], &mut sent)? {
                self.stream.writable().await?;
            }
        }
        Ok(())
    }

    /// The next message to write, if nobody else writes.
    fn next(&self) -> Option<Outgoing> {
        let mut outbox = self.outbox();
        if outbox.busy {
            return None;
        }
        let outgoing = outbox.queue.pop_front()?;
        outbox.busy = true;
        Some(outgoing)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing {
    /// What is left once so many bytes are sent.
    fn rest(header: &[u8], payload: &[u8], sent: usize) -> Self {
        let (head, body) = (sent.min(HEADER), sent.saturating_sub(HEADER));
        Self([&header[head..], &payload[body..]].concat())
    }
}

/// Writes as much as the system takes, after what was `sent` before; whether that was all.
fn write(stream: &OwnedWriteHalf, first: &[u8], then: &[u8], sent: &mut usize) -> Result<bool> {
    while *sent < first.len() + then.len() {
        let (head, body) = ((*sent).min(first.len()), sent.saturating_sub(first.len()));
        let parts = [IoSlice::new(&first[head..]), IoSlice::new(&then[body..])];
        match stream.try_write_vectored(&parts) {
            Ok(0) => return Err(ErrorKind::BrokenPipe.into()),
            Ok(written) => *sent += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Says that there is something in the memory.
fn bell() -> Header {
    let call = Call {
        kind: Kind::Barrier,
        element: Element::U8,
        reduction: Reduction::Sum,
        root: 0,
        count: 0,
        shape: 0,
        sequence: 0,
    };
    Header { group: 0, call, step: 0, length: 0, number: 0, checksum: 0 }
}

/// Puts everything that a peer sends into the mailbox, until the connection ends: why it did.
pub async fn receive(stream: OwnedReadHalf, inlet: &Inlet, mailbox: &Mailbox) -> Failure {
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    loop {
        match read(&mut stream).await {
            Ok((header, payload)) => {
                if let Err(failure) = inlet.bring(&header, payload, mailbox) {
                    return failure;
                }
            }
            Err(error) => {
                // What was sent before can still be taken.
                return inlet.fetch(mailbox).err().unwrap_or_else(|| failure(&error));
            }
        }
    }
}

/// Reads one message.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Header, Vec<u8>)> {
    let mut bytes = [0; HEADER];
    stream.read_exact(&mut bytes).await?;
    let header = Header::decode(&bytes).map_err(damaged)?;
    let mut payload = Vec::new();
    // The length is not known to fit into memory.
    payload
        .try_reserve_exact(header.length as usize)
        .map_err(|_| damaged(format!("no memory for a payload of {} bytes", header.length)))?;
    let (mut left, mut checksum) = (header.length as usize, 0);
    while left > 0 {
        let start = payload.len();
        let mut chunk = (&mut *stream).take(left.min(CHUNK) as u64);
        let read = chunk.read_buf(&mut payload).await?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        checksum = crc32c::crc32c_append(checksum, &payload[start..]);
        left -= read;
    }
    if checksum != header.checksum {
        return Err(damaged(format!("the payload of {} does not match its checksum", header.call)));
    }
    Ok((header, payload))
}
