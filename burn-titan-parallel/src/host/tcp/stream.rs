//! Messages of buffers over one connection to a peer.
//!
//! A message is written from where it lies, header and payload in one system call. The sender writes
//! itself as long as the system takes bytes, and leaves the rest to a task: `send` never waits for the
//! peer, so two ranks that send each other more than the system buffers do not wait for each other.
//! Buffer sizes are left to the system: it tunes them up to several MiB, while sizes that are set by
//! hand stay below `net.core.rmem_max`, which is often 208 KiB.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::super::frame::{HEADER, Header};
use super::super::mailbox::{Failure, Mailbox, Message};
use super::super::payload::Payload;
use super::protocol::{damaged, failure};

/// Bytes that are read before their checksum is taken, while they are still in the cache.
const CHUNK: usize = 256 << 10;

/// The sending half of a connection.
pub struct Sender {
    stream: OwnedWriteHalf,
    outbox: Mutex<Outbox>,
    filled: Notify,
}

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Outgoing>,
    /// Somebody writes: nobody else may.
    busy: bool,
    broken: Option<Failure>,
}

struct Outgoing {
    header: [u8; HEADER],
    payload: Payload,
    /// Bytes of both that are sent.
    sent: usize,
}

impl Sender {
    /// The sender over this half; its task runs as long as the runtime.
    pub fn new(stream: OwnedWriteHalf) -> Arc<Self> {
        let sender = Arc::new(Self { stream, outbox: Mutex::default(), filled: Notify::new() });
        tokio::spawn(sender.clone().drain());
        sender
    }

    /// Sends a message, after those that were sent before. Does not wait for the peer.
    ///
    /// # Errors
    /// If the connection has broken before.
    pub fn send(&self, group: u64, message: Message) -> std::result::Result<(), Failure> {
        let Message { call, step, payload } = message;
        let (length, checksum) = (payload.len() as u64, crc32c::crc32c(&payload));
        let header = Header { group, call, step, length, checksum }.encode();
        let mut outgoing = Outgoing { header, payload, sent: 0 };

        let mut outbox = self.outbox();
        if let Some(failure) = &outbox.broken {
            return Err(failure.clone());
        }
        if outbox.busy || !outbox.queue.is_empty() {
            outbox.queue.push_back(outgoing);
            drop(outbox);
            self.filled.notify_one();
            return Ok(());
        }
        outbox.busy = true;
        drop(outbox);
        let written = outgoing.write(&self.stream);
        let mut outbox = self.outbox();
        outbox.busy = false;
        match written {
            Ok(true) => {}
            Ok(false) => outbox.queue.push_front(outgoing),
            Err(error) => outbox.broken = Some(failure(&error)),
        }
        let more = !outbox.queue.is_empty();
        drop(outbox);
        if more {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Writes what senders have left.
    async fn drain(self: Arc<Self>) {
        loop {
            let Some(mut outgoing) = self.next() else {
                self.filled.notified().await;
                continue;
            };
            let written = loop {
                match outgoing.write(&self.stream) {
                    Ok(true) => break Ok(()),
                    Ok(false) => {}
                    Err(error) => break Err(error),
                }
                if let Err(error) = self.stream.writable().await {
                    break Err(error);
                }
            };
            let mut outbox = self.outbox();
            outbox.busy = false;
            if let Err(error) = written {
                outbox.broken = Some(failure(&error));
                outbox.queue.clear();
                return;
            }
        }
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
    /// Writes as much as the system takes; whether that was all.
    fn write(&mut self, stream: &OwnedWriteHalf) -> Result<bool> {
        let total = HEADER + self.payload.len();
        while self.sent < total {
            let (head, body) = (self.sent.min(HEADER), self.sent.saturating_sub(HEADER));
            let parts = [IoSlice::new(&self.header[head..]), IoSlice::new(&self.payload[body..])];
            match stream.try_write_vectored(&parts) {
                Ok(0) => return Err(ErrorKind::BrokenPipe.into()),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Puts everything that `peer` sends into the mailbox, until the connection ends: why it did.
pub async fn receive(stream: OwnedReadHalf, peer: usize, mailbox: &Mailbox) -> Failure {
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    loop {
        match read(&mut stream).await {
            Ok((group, message)) => mailbox.put(peer, group, message),
            Err(error) => return failure(&error),
        }
    }
}

/// Reads one message.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u64, Message)> {
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
    let message = Message { call: header.call, step: header.step, payload: payload.into() };
    Ok((header.group, message))
}
