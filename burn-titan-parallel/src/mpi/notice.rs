//! What ranks tell each other before an operation: MPI itself does not notice when two of them make different
//! calls, and waits, fails or gives wrong numbers.

use crate::host::{Call, CommError, Element, Kind, Peer, Reduction};

/// Numbers of a notice.
pub const WORDS: usize = 7;

/// What one rank tells another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// The operation that it makes.
    pub call: Call,
    /// Bytes that it is about to send to this peer, where ranks may send different ones.
    pub bytes: usize,
    /// Whether its buffers are too long for one call of MPI.
    pub long: bool,
}

impl Notice {
    /// The numbers that are sent.
    pub fn encode(&self) -> [u64; WORDS] {
        let Call { kind, element, reduction, root, count, shape, sequence } = self.call;
        let codes =
            u32::from_le_bytes([kind as u8, element as u8, reduction as u8, self.long.into()]);
        [codes.into(), root.into(), count, shape, sequence, self.bytes as u64, CHECK]
    }

    /// Reads what a rank has sent.
    ///
    /// # Errors
    /// If these are no notice's numbers.
    pub fn decode(words: &[u64], peer: &Peer, ours: &Call) -> Result<Self, CommError> {
        let notice = || {
            let &[codes, root, count, shape, sequence, bytes, CHECK] = words else { return None };
            let [kind, element, reduction, long] = u32::try_from(codes).ok()?.to_le_bytes();
            let call = Call {
                kind: Kind::from_code(kind)?,
                element: Element::from_code(element)?,
                reduction: Reduction::from_code(reduction)?,
                root: u32::try_from(root).ok()?,
                count,
                shape,
                sequence,
            };
            Some(Self { call, bytes: usize::try_from(bytes).ok()?, long: long != 0 })
        };
        notice().ok_or_else(|| CommError::Corrupt {
            peer: peer.clone(),
            cause: "no notice of an operation".to_string(),
            call: Some(*ours),
        })
    }
}

/// The last number of every notice.
const CHECK: u64 = u64::from_le_bytes(*b"BTmpi 01");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_read_as_it_was_sent_and_anything_else_is_refused() {
        let call = Call {
            kind: Kind::ReduceScatter,
            element: Element::BF16,
            reduction: Reduction::Average,
            root: 7,
            count: u64::MAX,
            shape: 12,
            sequence: 1 << 40,
        };
        let notice = Notice { call, bytes: 5 << 32, long: true };
        let peer = Peer { rank: 1, host: "a".to_string() };
        assert_eq!(Notice::decode(&notice.encode(), &peer, &call), Ok(notice));
        for (place, value) in [(0, 0), (0, u64::MAX), (1, u64::MAX), (6, 0)] {
            let mut words = notice.encode();
            words[place] = value;
            let error = Notice::decode(&words, &peer, &call).unwrap_err().to_string();
            assert!(error.starts_with("the bytes from rank 1 on a are damaged"), "{error}");
        }
    }
}
