//! Exchanging tensors between the ranks of a group.

use burn::tensor::Tensor;

/// An operation under way.
#[must_use = "an operation is done only once it was waited for"]
pub struct Work<T> {
    result: T,
}

impl<T> Work<T> {
    /// An operation that is done already.
    pub fn done(result: T) -> Self {
        Self { result }
    }

    /// Waits for the operation and returns its result.
    pub fn wait(self) -> T {
        self.result
    }
}

/// The ranks of one group and the collective operations between them. Every rank of the group calls
/// the same operations in the same order. Tensors are flat.
pub trait Communicator: Send {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn size(&self) -> usize;

    /// The ranks' shards one after the other, in the order of ranks; `lengths[r]` is the length of
    /// rank `r`'s shard.
    fn all_gather(&self, shard: Tensor<1>, lengths: &[usize]) -> Work<Tensor<1>>;

    /// The sum over ranks of `whole`, of which each rank gets its own range; `lengths` as in
    /// [`Communicator::all_gather`].
    fn reduce_scatter(&self, whole: Tensor<1>, lengths: &[usize]) -> Work<Tensor<1>>;

    /// The sum over ranks.
    fn all_reduce(&self, x: Tensor<1>) -> Work<Tensor<1>>;
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

    fn all_gather(&self, shard: Tensor<1>, _: &[usize]) -> Work<Tensor<1>> {
        Work::done(shard)
    }

    fn reduce_scatter(&self, whole: Tensor<1>, _: &[usize]) -> Work<Tensor<1>> {
        Work::done(whole)
    }

    fn all_reduce(&self, x: Tensor<1>) -> Work<Tensor<1>> {
        Work::done(x)
    }
}
