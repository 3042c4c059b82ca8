//! Communicators whose exchange goes through host memory: between threads, over tcp, and by MPI.

use burn::tensor::Bytes;

use super::buffer::{Buffer, Kind};
use super::{CommError, Communicator, Reduction, Work};
use crate::host::{Exchange, Pending};

/// A group that exchanges host memory. Reading a tensor waits for the device on the calling thread; the
/// exchange runs on a progress thread; the result goes to the device when it is waited for.
pub struct HostCommunicator {
    exchange: Box<dyn Exchange<Bytes>>,
}

impl HostCommunicator {
    /// A communicator over a group's [`Queue`](crate::host::Queue), or whatever else exchanges its bytes.
    pub fn new(exchange: impl Exchange<Bytes> + 'static) -> Self {
        Self { exchange: Box::new(exchange) }
    }

    /// Starts an operation on the bytes of `x`.
    fn start(
        &self,
        x: Buffer,
        begin: impl FnOnce(&dyn Exchange<Bytes>, Bytes, &Kind) -> Pending<Bytes>,
    ) -> Work<Buffer> {
        match x.kind() {
            Err(error) => Work::failed(error),
            Ok(kind) => {
                let pending = begin(&*self.exchange, x.into_bytes(), &kind);
                Work::pending(move || pending.wait().map(|bytes| kind.buffer(bytes)))
            }
        }
    }

    /// Whether the group has such a rank, and it is another one.
    fn check(&self, rank: usize) -> Result<(), CommError> {
        let size = self.exchange.size();
        if rank >= size || rank == self.exchange.rank() {
            return Err(CommError::NoSuchRank { rank, size });
        }
        Ok(())
    }
}

impl Communicator for HostCommunicator {
    fn rank(&self) -> usize {
        self.exchange.rank()
    }

    fn size(&self) -> usize {
        self.exchange.size()
    }

    fn all_reduce(&self, x: Buffer, reduction: Reduction) -> Work<Buffer> {
        self.start(x, |exchange, bytes, kind| exchange.all_reduce(bytes, kind.element, reduction))
    }

    fn all_gather(&self, shard: Buffer, lengths: &[usize]) -> Work<Buffer> {
        self.start(shard, |exchange, bytes, kind| exchange.all_gather(bytes, lengths, kind.element))
    }

    fn reduce_scatter(
        &self,
        whole: Buffer,
        lengths: &[usize],
        reduction: Reduction,
    ) -> Work<Buffer> {
        self.start(whole, |exchange, bytes, kind| {
            exchange.reduce_scatter(bytes, lengths, kind.element, reduction)
        })
    }

    fn all_to_all(&self, x: Buffer, send: &[usize], receive: &[usize]) -> Work<Buffer> {
        self.start(x, |exchange, bytes, kind| {
            exchange.all_to_all(bytes, send, receive, kind.element)
        })
    }

    fn broadcast(&self, x: Buffer, root: usize) -> Work<Buffer> {
        if root >= self.exchange.size() {
            return Work::failed(CommError::NoSuchRank { rank: root, size: self.exchange.size() });
        }
        let count = x.elements();
        self.start(x, |exchange, bytes, kind| exchange.broadcast(bytes, count, kind.element, root))
    }

    fn send(&self, x: Buffer, to: usize) -> Work<()> {
        let kind = match self.check(to).and_then(|()| x.kind()) {
            Ok(kind) => kind,
            Err(error) => return Work::failed(error),
        };
        let pending = self.exchange.send(x.into_bytes(), kind.element, to);
        Work::pending(move || pending.wait())
    }

    fn receive(&self, like: Buffer, from: usize) -> Work<Buffer> {
        let kind = match self.check(from).and_then(|()| like.kind()) {
            Ok(kind) => kind,
            Err(error) => return Work::failed(error),
        };
        let pending = self.exchange.receive(like.elements(), kind.element, from);
        Work::pending(move || pending.wait().map(|bytes| kind.buffer(bytes)))
    }

    fn barrier(&self) -> Work<()> {
        let pending = self.exchange.barrier();
        Work::pending(move || pending.wait())
    }
}
