//! A group of ranks as operations inside a forward or a backward use it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::communicator::{CommError, Communicator, OneRank, Work};

/// The ranks of one axis, for exchanges in the middle of a computation.
///
/// Neither a module's forward nor a backward of autodiff can return an error. The first one that an exchange
/// meets is kept here, the computation goes on with whatever is at hand, and [`Peers::check`] gives the error to
/// whoever runs the computation, before its result is used. The exchanges after it fail at once.
#[derive(Clone)]
pub struct Peers {
    communicator: Arc<dyn Communicator>,
    failure: Arc<OnceLock<CommError>>,
}

impl Peers {
    /// The ranks that a communicator reaches.
    pub fn new(communicator: Box<dyn Communicator>) -> Self {
        Self { communicator: communicator.into(), failure: Arc::default() }
    }

    /// No other rank.
    pub fn alone() -> Self {
        Self::new(Box::new(OneRank))
    }

    /// This rank's place in the group.
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.communicator.size()
    }

    /// Whether there are other ranks.
    pub fn several(&self) -> bool {
        self.size() > 1
    }

    /// What the exchanges go through.
    pub fn communicator(&self) -> &(dyn Communicator + 'static) {
        &*self.communicator
    }

    /// Begins an exchange, unless one has failed before: what this rank would send is worth nothing then, and no peer
    /// may take it for a result.
    pub fn begin<T>(&self, exchange: impl FnOnce(&dyn Communicator) -> Work<T>) -> Work<T> {
        match self.check() {
            Ok(()) => exchange(&*self.communicator),
            Err(error) => Work::failed(error),
        }
    }

    /// Waits for an exchange; if it fails, keeps the error and gives what `otherwise` makes.
    pub fn settle<T>(&self, work: Work<T>, otherwise: impl FnOnce() -> T) -> T {
        work.wait().unwrap_or_else(|error| {
            // Only the first one says what happened.
            let _ = self.failure.set(error);
            otherwise()
        })
    }

    /// Whether all exchanges so far have succeeded.
    ///
    /// # Errors
    /// The first error that one of them met.
    pub fn check(&self) -> Result<(), CommError> {
        self.failure.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_kept() {
        let peers = Peers::alone();
        assert!(!peers.several() && peers.check().is_ok());
        let failed = |rank| peers.communicator().send(no_tensor(), rank);
        peers.settle(failed(3), || ());
        peers.settle(failed(4), || ());
        assert_eq!(peers.settle(Work::done(7), || 0), 7);
        let error = peers.check().unwrap_err();
        assert_eq!(error, CommError::NoSuchRank { rank: 3, size: 1 });
        let begun = peers.begin(|_| -> Work<()> { unreachable!("nothing is begun any more") });
        assert_eq!(begun.wait().unwrap_err(), error);
    }

    fn no_tensor() -> crate::Buffer {
        burn::tensor::Tensor::<1>::zeros([0], &burn::tensor::Device::flex()).into()
    }
}
