//! Who may speak: both ends of every connection prove that they know the token, without sending it.
//!
//! The end that connects sends magic (16), version (4) and a random number (32); the other answers with
//! magic, version, a verdict (1) and a random number of its own. Each then sends
//! `HMAC-SHA-256(token, role | version | both numbers)`, the one that connects first, so that a
//! stranger learns nothing that it could try tokens against. Everything has a fixed size: no length of
//! a stranger is believed. What is sent afterwards is neither encrypted nor signed: the network itself
//! must be trusted, as with MPI, NCCL and Gloo.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::error::{JoinError, Refusal};

const MAGIC: [u8; 16] = *b"burn-titan links";

/// The version of everything that is sent over these connections.
pub const VERSION: u32 = 2;

/// How long the other end may take to prove itself.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

const GO_ON: u8 = 0;
const REFUSED: u8 = 1;

type Nonce = [u8; 32];
type Proof = Hmac<Sha256>;

/// The secret that the ranks of a run share. Not shown by `Debug`.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl Token {
    /// The token with these bytes.
    ///
    /// # Errors
    /// If it is empty.
    pub fn new(secret: impl Into<Vec<u8>>) -> Result<Self, JoinError> {
        let secret = secret.into();
        if secret.is_empty() {
            return Err(JoinError::Config("the ranks' token is empty".to_string()));
        }
        Ok(Self(secret))
    }

    /// 32 random hexadecimal digits, as for an environment variable of the processes of one run.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random() -> Result<String, JoinError> {
        let bytes = random()?;
        Ok(bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn proof(&self, role: &[u8], connector: &Nonce, acceptor: &Nonce) -> Proof {
        let mut proof = Proof::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        proof.update(role);
        proof.update(&VERSION.to_le_bytes());
        proof.update(connector);
        proof.update(acceptor);
        proof
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a connection is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// The connection failed.
    #[error("{0}")]
    Broken(String),
    /// It did not prove itself in time.
    #[error("it said nothing that proves itself within {} s", HANDSHAKE.as_secs())]
    Slow,
    /// It speaks something else.
    #[error("it begins with {0:?}")]
    NotOurs(String),
    /// It is one of ours, but must not come in.
    #[error("{0}")]
    Refused(Refusal),
}

impl From<std::io::Error> for Stranger {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(super::protocol::describe(&error))
    }
}

/// Proves the end that has connected, and has the other end prove itself.
///
/// # Errors
/// If either refuses, or [`HANDSHAKE`] is over.
pub async fn connect(stream: &mut TcpStream, token: &Token) -> Result<(), Stranger> {
    in_time(connecting(stream, token)).await
}

/// Has the end that has connected prove itself, then proves this one.
///
/// # Errors
/// As [`connect`].
pub async fn accept(stream: &mut TcpStream, token: &Token) -> Result<(), Stranger> {
    in_time(accepting(stream, token)).await
}

async fn in_time(shake: impl Future<Output = Result<(), Stranger>>) -> Result<(), Stranger> {
    tokio::time::timeout(HANDSHAKE, shake).await.unwrap_or(Err(Stranger::Slow))
}

async fn connecting(stream: &mut TcpStream, token: &Token) -> Result<(), Stranger> {
    let own = fresh()?;
    let mut hello = MAGIC.to_vec();
    hello.extend(VERSION.to_le_bytes());
    hello.extend(own);
    stream.write_all(&hello).await?;

    let theirs = read_opening(stream).await?;
    let verdict = stream.read_u8().await?;
    if theirs != VERSION {
        return Err(Stranger::Refused(Refusal::Version { ours: VERSION, theirs }));
    }
    if verdict != GO_ON {
        return Err(Stranger::Refused(Refusal::Unexpected(format!("verdict {verdict}"))));
    }
    let mut nonce = Nonce::default();
    stream.read_exact(&mut nonce).await?;

    let proof = token.proof(b"connector", &own, &nonce).finalize().into_bytes();
    stream.write_all(&proof).await?;
    if stream.read_u8().await? != GO_ON {
        return Err(Stranger::Refused(Refusal::Token));
    }
    let mut answer = Nonce::default();
    stream.read_exact(&mut answer).await?;
    verify(token.proof(b"acceptor", &own, &nonce), &answer)
}

async fn accepting(stream: &mut TcpStream, token: &Token) -> Result<(), Stranger> {
    let theirs = read_opening(stream).await?;
    let own = fresh()?;
    let mut answer = MAGIC.to_vec();
    answer.extend(VERSION.to_le_bytes());
    answer.push(if theirs == VERSION { GO_ON } else { REFUSED });
    answer.extend(own);
    stream.write_all(&answer).await?;
    if theirs != VERSION {
        return Err(Stranger::Refused(Refusal::Version { ours: VERSION, theirs }));
    }
    let (mut nonce, mut proof) = (Nonce::default(), Nonce::default());
    stream.read_exact(&mut nonce).await?;
    stream.read_exact(&mut proof).await?;
    if let Err(refusal) = verify(token.proof(b"connector", &nonce, &own), &proof) {
        stream.write_u8(REFUSED).await?;
        return Err(refusal);
    }
    let mut answer = vec![GO_ON];
    answer.extend(token.proof(b"acceptor", &nonce, &own).finalize().into_bytes());
    Ok(stream.write_all(&answer).await?)
}

/// Reads the magic and returns the version.
async fn read_opening(stream: &mut TcpStream) -> Result<u32, Stranger> {
    // What is too short to be ours is judged once it ends, or differs.
    let mut magic = [0; 16];
    let mut length = 0;
    while length < magic.len() {
        let read = stream.read(&mut magic[length..]).await?;
        length += read;
        if read == 0 || magic[..length] != MAGIC[..length] {
            return Err(Stranger::NotOurs(String::from_utf8_lossy(&magic[..length]).into_owned()));
        }
    }
    Ok(stream.read_u32_le().await?)
}

/// Compares in constant time.
fn verify(expected: Proof, got: &Nonce) -> Result<(), Stranger> {
    expected.verify_slice(got).map_err(|_| Stranger::Refused(Refusal::Token))
}

fn fresh() -> Result<Nonce, Stranger> {
    random().map_err(|error| Stranger::Broken(error.to_string()))
}

fn random() -> Result<Nonce, JoinError> {
    let mut bytes = Nonce::default();
    getrandom::fill(&mut bytes)
        .map_err(|error| JoinError::System { what: "random numbers", cause: error.to_string() })?;
    Ok(bytes)
}
