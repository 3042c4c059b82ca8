//! Exchanging tensors between the ranks of a group.

mod buffer;
mod host;
mod quantized;
mod rehearsal;
#[cfg(test)]
mod tests;

pub use buffer::Buffer;
pub use host::HostCommunicator;
pub use quantized::{all_gather_quantized, reduce_scatter_quantized};
pub(crate) use rehearsal::Rehearsal;

use burn::tensor::Tensor;

pub use crate::host::{CommError, Element, Reduction};

/// An operation under way.
#[must_use = "an operation is done only once it was waited for"]
pub struct Work<T>(State<T>);

enum State<T> {
    Done(Result<T, CommError>),
    Pending(Box<dyn FnOnce() -> Result<T, CommError> + Send>),
}

impl<T> Work<T> {
    /// An operation that is done already.
    pub fn done(result: T) -> Self {
        Self(State::Done(Ok(result)))
    }

    /// An operation that could not be begun.
    pub fn failed(error: CommError) -> Self {
        Self(State::Done(Err(error)))
    }

    /// An operation that is under way; `wait` waits for it.
    pub fn pending(wait: impl FnOnce() -> Result<T, CommError> + Send + 'static) -> Self {
        Self(State::Pending(Box::new(wait)))
    }

    /// Waits for the operation and returns its result.
    ///
    /// # Errors
    /// If a peer is lost or late, makes another call, or sends damaged bytes.
    pub fn wait(self) -> Result<T, CommError> {
        match self.0 {
            State::Done(result) => result,
            State::Pending(wait) => wait(),
        }
    }

    /// The operation with another result made of its own, by the thread that waits.
    pub fn map<U>(self, f: impl FnOnce(T) -> U + Send + 'static) -> Work<U>
    where
        T: 'static,
    {
        match self.0 {
            State::Done(result) => Work(State::Done(result.map(f))),
            State::Pending(wait) => Work::pending(move || wait().map(f)),
        }
    }
}

/// The ranks of one group and the operations between them. Every rank of the group calls the same
/// operations in the same order, with equal lengths, dtypes and reductions; several may be under way at
/// once. Tensors are flat; lengths are in elements.
///
/// Sums are taken in the order of ranks, those of f16 and bf16 in f32.
pub trait Communicator: Send + Sync {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn size(&self) -> usize;

    /// The reduction over ranks, for all of them.
    fn all_reduce(&self, x: Buffer, reduction: Reduction) -> Work<Buffer>;

    /// The ranks' shards one after the other, in the order of ranks; `lengths[r]` is the length of
    /// rank `r`'s shard.
    fn all_gather(&self, shard: Buffer, lengths: &[usize]) -> Work<Buffer>;

    /// The reduction over ranks, of which each rank gets its own range; `lengths` as in
    /// [`Communicator::all_gather`].
    fn reduce_scatter(
        &self,
        whole: Buffer,
        lengths: &[usize],
        reduction: Reduction,
    ) -> Work<Buffer>;

    /// Sends rank `r` the `r`-th range of `x` (`send` are the lengths) and returns what the ranks sent to
    /// this one, in their order (`receive` are the lengths).
    fn all_to_all(&self, x: Buffer, send: &[usize], receive: &[usize]) -> Work<Buffer>;

    /// The `root`'s `x`, for all; of the others only length, dtype and device count.
    fn broadcast(&self, x: Buffer, root: usize) -> Work<Buffer>;

    /// Sends `x` to a rank.
    fn send(&self, x: Buffer, to: usize) -> Work<()>;

    /// What a rank sends; `like` has the length, dtype and device of it.
    fn receive(&self, like: Buffer, from: usize) -> Work<Buffer>;

    /// Done once every rank has called it.
    fn barrier(&self) -> Work<()>;
}

impl dyn Communicator + '_ {
    /// [`Communicator::all_reduce`] of floats.
    pub fn all_reduce_sum(&self, x: Tensor<1>) -> Work<Tensor<1>> {
        self.all_reduce(x.into(), Reduction::Sum).map(Buffer::float)
    }

    /// [`Communicator::all_gather`] of floats.
    pub fn all_gather_floats(&self, shard: Tensor<1>, lengths: &[usize]) -> Work<Tensor<1>> {
        self.all_gather(shard.into(), lengths).map(Buffer::float)
    }

    /// [`Communicator::reduce_scatter`] of the sum of floats.
    pub fn reduce_scatter_sum(&self, whole: Tensor<1>, lengths: &[usize]) -> Work<Tensor<1>> {
        self.reduce_scatter(whole.into(), lengths, Reduction::Sum).map(Buffer::float)
    }
}

/// A group of one rank: every operation is the identity.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneRank;

impl Communicator for OneRank {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, x: Buffer, _: Reduction) -> Work<Buffer> {
        Work::done(x)
    }

    fn all_gather(&self, shard: Buffer, _: &[usize]) -> Work<Buffer> {
        Work::done(shard)
    }

    fn reduce_scatter(&self, whole: Buffer, _: &[usize], _: Reduction) -> Work<Buffer> {
        Work::done(whole)
    }

    fn all_to_all(&self, x: Buffer, _: &[usize], _: &[usize]) -> Work<Buffer> {
        Work::done(x)
    }

    fn broadcast(&self, x: Buffer, _: usize) -> Work<Buffer> {
        Work::done(x)
    }

    fn send(&self, _: Buffer, to: usize) -> Work<()> {
        Work::failed(CommError::NoSuchRank { rank: to, size: 1 })
    }

    fn receive(&self, _: Buffer, from: usize) -> Work<Buffer> {
        Work::failed(CommError::NoSuchRank { rank: from, size: 1 })
    }

    fn barrier(&self) -> Work<()> {
        Work::done(())
    }
}
