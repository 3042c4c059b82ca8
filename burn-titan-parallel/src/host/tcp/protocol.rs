//! What ranks say to each other beside the exchange of buffers: small messages in JSON, each with magic
//! (4), length (4) and a CRC-32C (4) before it.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::mailbox::Failure;
use super::error::Refusal;
use super::memory::Offer;

const MAGIC: [u8; 4] = *b"BTC1";

/// Longest message that is believed; the table of some thousand ranks.
const LONGEST: usize = 1 << 20;

/// What a rank is and where it listens for its peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The host, as errors name it.
    pub host: String,
    /// Where its peers connect.
    pub address: SocketAddr,
}

/// What a rank does in a group, for the one who finds the culprit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The group.
    pub group: u64,
    /// The operation's number in the group.
    pub sequence: u64,
    /// The operation, in words.
    pub operation: String,
    /// The world rank whose message it waits for.
    pub waits_for: Option<usize>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// To rank 0: a rank wants to join.
    Register {
        /// The rank.
        rank: usize,
        /// Ranks as it knows them.
        world_size: usize,
        /// What the others must know.
        entry: Entry,
    },
    /// From rank 0: all ranks have come, and here they are.
    Table(Vec<Entry>),
    /// The connection will be closed, and why.
    Refused(Refusal),
    /// To a peer: this connection carries messages between these ranks.
    Link {
        /// Who connects.
        from: usize,
        /// To whom.
        to: usize,
        /// Memory for the messages, where both may be on one host.
        memory: Option<Offer>,
    },
    /// The connection is accepted.
    Linked {
        /// Whether the memory is, too.
        memory: bool,
    },
    /// To rank 0: connected with all.
    Ready,
    /// From rank 0: all are.
    Go,
    /// A sign of life, and what the rank does; to rank 0 also the answer to [`Control::Ask`].
    Beat {
        /// What it does.
        doing: Vec<Status>,
        /// The question that is answered, or 0.
        answers: u64,
    },
    /// From rank 0: are you there?
    Ask(u64),
    /// To rank 0: a peer seems to be lost.
    Suspect {
        /// The peer.
        peer: usize,
        /// What was seen.
        failure: Failure,
    },
    /// To rank 0: not all ranks were ready, or have said goodbye, after so long.
    Overdue(Duration),
    /// To rank 0: this rank gives up, and why.
    GaveUp(String),
    /// From rank 0: all is over because of this rank.
    Verdict(usize, Failure),
    /// To rank 0: this rank needs nobody any more.
    Goodbye,
    /// From rank 0: nobody needs anybody any more.
    Farewell,
}

/// The bytes of a message.
pub fn encode(control: &Control) -> Vec<u8> {
    let text = serde_json::to_vec(control).expect("plain data is JSON");
    let length = (text.len() as u32).to_le_bytes();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&length), &text);
    [&MAGIC[..], &length, &checksum.to_le_bytes(), &text].concat()
}

/// Sends a message.
///
/// # Errors
/// As the connection's.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), control: &Control) -> Result<()> {
    stream.write_all(&encode(control)).await
}

/// Receives a message.
///
/// # Errors
/// As the connection's; [`ErrorKind::InvalidData`] if the bytes are no message.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Control> {
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = number(4) as usize;
    if head[..4] != MAGIC {
        return Err(damaged(format!("not a message: it begins with {:02x?}", &head[..4])));
    }
    if length > LONGEST {
        return Err(damaged(format!("a message of {length} bytes")));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    if crc32c::crc32c_append(crc32c::crc32c(&head[4..8]), &text) != number(8) {
        return Err(damaged("a message does not match its checksum".to_string()));
    }
    serde_json::from_slice(&text).map_err(|error| damaged(format!("an unknown message: {error}")))
}

/// What became of a connection, in words.
pub fn describe(error: &Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "its connection was closed".to_string(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "its connection broke".to_string(),
        _ => error.to_string(),
    }
}

/// What became of a connection, as the mailbox knows it.
pub fn failure(error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::InvalidData => Failure::Damaged(error.to_string()),
        _ => Failure::Gone(describe(error)),
    }
}

/// An error for bytes that are no message.
pub fn damaged(cause: String) -> Error {
    Error::new(ErrorKind::InvalidData, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_seen() {
        let control = Control::Suspect { peer: 3, failure: Failure::Late(Duration::from_secs(2)) };
        let bytes = encode(&control);
        runtime().block_on(async {
            assert_eq!(read(&mut &bytes[..]).await.unwrap(), control);
            for bit in 0..bytes.len() * 8 {
                let mut broken = bytes.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert!(read(&mut &broken[..]).await.is_err(), "bit {bit}");
            }
            let mut long = bytes.clone();
            long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            let error = read(&mut &long[..]).await.unwrap_err();
            assert_eq!(failure(&error), Failure::Damaged("a message of 4294967295 bytes".into()));
        });
    }
}
