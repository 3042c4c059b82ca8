//! The memory that an operation reads and writes.

use super::element::Element;

/// A buffer of bytes that an operation takes and gives back, whoever allocates it.
pub trait Memory: Send + 'static {
    /// A buffer of so many zero bytes, aligned for elements of this type.
    fn zeroed(bytes: usize, element: Element) -> Self;

    /// Its bytes.
    fn bytes(&self) -> &[u8];

    /// Its bytes, to be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl Memory for Vec<u8> {
    fn zeroed(bytes: usize, _: Element) -> Self {
        vec![0; bytes]
    }

    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}
