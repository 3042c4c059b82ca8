//! The bytes of a message that has arrived, wherever they lie.

use std::fmt;
use std::ops::Deref;

/// The bytes of a message: memory of this process, or of a host's ranks in common.
pub struct Payload(Box<dyn AsRef<[u8]> + Send + Sync>);

impl Payload {
    /// The bytes in `place`, which is dropped when they are no longer needed.
    pub fn new(place: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Box::new(place))
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
