//! The ranks that write one checkpoint together.

use std::error::Error;

/// An exchange between the ranks of a save failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ExchangeError(Box<dyn Error + Send + Sync>);

impl ExchangeError {
    /// The error of whatever carries the bytes.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }

    /// What was given to [`ExchangeError::new`].
    pub fn cause(&self) -> &(dyn Error + 'static) {
        &*self.0
    }
}

/// How the ranks that write one checkpoint reach each other. All of them make the same calls in the same
/// order. Rank 0 leads. A call waits for ranks that still write, so that its deadline must be longer
/// than the slowest rank takes to write its part.
pub trait Writers: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// Ranks that write.
    fn size(&self) -> usize;

    /// What each rank gave, in the order of ranks, on rank 0; nothing on the others.
    ///
    /// # Errors
    /// If a rank is lost or late.
    fn gather_to_first(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// What rank 0 gave.
    ///
    /// # Errors
    /// If a rank is lost or late.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, ExchangeError>;
}

/// The only rank of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneWriter;

impl Writers for OneWriter {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather_to_first(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(vec![bytes])
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, ExchangeError> {
        Ok(bytes)
    }
}
