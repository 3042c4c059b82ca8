//! Messages between ranks: a header of fixed size, then the payload.
//!
//! Little-endian: magic (4), group (8), kind, element, reduction, 0 (1 each), step (4), root (4), count, shape,
//! sequence, payload length, number (8 each), CRC-32C of the payload (4), CRC-32C of the header so far (4).

use super::call::{Call, Kind};
use super::element::{Element, Reduction};

/// Bytes of a header.
pub const HEADER: usize = 72;

const MAGIC: [u8; 4] = *b"BTF2";

/// Longest payload that is believed.
pub const MAX_PAYLOAD: u64 = 1 << 40;

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The group that the message belongs to.
    pub group: u64,
    /// The operation that the message belongs to.
    pub call: Call,
    /// The message's place in the operation.
    pub step: u32,
    /// Bytes of the payload.
    pub length: u64,
    /// The how-manieth message between the two ranks, from 1.
    pub number: u64,
    /// Of the payload.
    pub checksum: u32,
}

impl Header {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER] {
        let Self { group, call, step, length, number, checksum } = *self;
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&MAGIC);
        put(&group.to_le_bytes());
        put(&[call.kind as u8, call.element as u8, call.reduction as u8, 0]);
        put(&step.to_le_bytes());
        put(&call.root.to_le_bytes());
        for field in [call.count, call.shape, call.sequence, length, number] {
            put(&field.to_le_bytes());
        }
        put(&checksum.to_le_bytes());
        let own = crc32c::crc32c(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Reads the bytes of the wire.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, String> {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let small = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes[..4] != MAGIC {
            return Err(format!("not a message: it begins with {:02x?}", &bytes[..4]));
        }
        if crc32c::crc32c(&bytes[..HEADER - 4]) != small(HEADER - 4) {
            return Err("the header does not match its checksum".to_string());
        }
        let codes = (
            Kind::from_code(bytes[12]),
            Element::from_code(bytes[13]),
            Reduction::from_code(bytes[14]),
        );
        let (Some(kind), Some(element), Some(reduction)) = codes else {
            return Err(format!("unknown operation {:02x?}", &bytes[12..15]));
        };
        let call = Call {
            kind,
            element,
            reduction,
            root: small(20),
            count: number(24),
            shape: number(32),
            sequence: number(40),
        };
        let length = number(48);
        if length > MAX_PAYLOAD {
            return Err(format!("a payload of {length} bytes"));
        }
        Ok(Self {
            group: number(4),
            call,
            step: small(16),
            length,
            number: number(56),
            checksum: small(64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let call = Call {
            kind: Kind::AllToAll,
            element: Element::BF16,
            reduction: Reduction::Sum,
            root: 3,
            count: 1 << 33,
            shape: 0xDEAD_BEEF,
            sequence: 77,
        };
        Header { group: 9, call, step: 2, length: 12, number: 3, checksum: 5 }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = header().encode();
        for bit in 0..HEADER * 8 {
            let mut broken = bytes;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&broken).is_err(), "bit {bit}");
        }
        let long = Header { length: MAX_PAYLOAD + 1, ..header() };
        assert_eq!(
            Header::decode(&long.encode()),
            Err("a payload of 1099511627777 bytes".to_string())
        );
        assert!(
            Header::decode(
                b"GET / HTTP/1.1\r\nHost: here.............................................."
            )
            .unwrap_err()
            .contains("not a message")
        );
    }
}
