//! Bytes that several messages share.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// A range of a buffer that is shared without a copy.
#[derive(Debug, Clone)]
pub struct Payload {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Payload {
    /// A part of it.
    ///
    /// # Panics
    /// If the range is not within.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let range = self.range.start + range.start..self.range.start + range.end;
        assert!(range.end <= self.range.end, "a part of the payload");
        Self { buffer: self.buffer.clone(), range }
    }

    /// The bytes as a buffer of their own; a copy only where they are shared or a part.
    pub fn into_vec(self) -> Vec<u8> {
        if self.range == (0..self.buffer.len()) {
            Arc::try_unwrap(self.buffer).unwrap_or_else(|shared| shared.to_vec())
        } else {
            self.to_vec()
        }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(buffer: Vec<u8>) -> Self {
        let range = 0..buffer.len();
        Self { buffer: Arc::new(buffer), range }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}
