//! Why an exchange between ranks failed, and whose fault it is.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::call::Call;
use super::mailbox::Failure;

/// A rank, as errors name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Its rank in the world.
    pub rank: usize,
    /// The host it runs on.
    pub host: String,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} on {}", self.rank, self.host)
    }
}

/// Why an operation between ranks failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommError {
    /// A peer is gone: its process ended, or the connection to it broke.
    #[error("{peer} is lost ({cause}) in {}", during(.call))]
    Lost {
        /// The culprit.
        peer: Peer,
        /// What was seen of it.
        cause: String,
        /// What this rank was doing.
        call: Option<Call>,
    },
    /// A peer did not answer in time.
    #[error("{peer} did not answer within {} s in {}", .after.as_secs_f64(), during(.call))]
    TimedOut {
        /// The culprit.
        peer: Peer,
        /// How long this rank waited.
        after: Duration,
        /// What this rank was doing.
        call: Option<Call>,
    },
    /// Two ranks disagree about the next operation of a group.
    #[error(
        "{peer} makes another call: {theirs}, but rank {rank} makes {ours}; every rank must make the same calls in the same order"
    )]
    Disagree {
        /// The other rank.
        peer: Peer,
        /// This rank.
        rank: usize,
        /// This rank's call.
        ours: Box<Call>,
        /// The peer's.
        theirs: Box<Call>,
    },
    /// A message does not match its checksum, or is none of ours.
    #[error("the bytes from {peer} are damaged ({cause}) in {}", during(.call))]
    Corrupt {
        /// Who they came from.
        peer: Peer,
        /// What is wrong.
        cause: String,
        /// What this rank was doing.
        call: Option<Call>,
    },
    /// MPI reports an error.
    #[error("MPI fails in {}: {cause}", during_or_before(.call))]
    Mpi {
        /// What it says.
        cause: String,
        /// What this rank was doing.
        call: Option<Call>,
    },
    /// NCCL or CUDA reports an error.
    #[error("NCCL fails in {}: {cause}", during_or_before(.call))]
    Nccl {
        /// What it says.
        cause: String,
        /// What this rank was doing.
        call: Option<Call>,
    },
    /// An operation of MPI or NCCL was not done in time. They do not say which rank is to blame.
    #[error(
        "{call}: not done within {} s among {size} ranks: one of them is lost or late, and {library} does not say which", .after.as_secs_f64()
    )]
    Unfinished {
        /// Whose operation.
        library: &'static str,
        /// What this rank was doing.
        call: Call,
        /// How long this rank waited.
        after: Duration,
        /// Ranks in the group.
        size: usize,
    },
    /// A rank that the group does not have, or this rank itself.
    #[error("rank {rank} is no peer in a group of {size} ranks")]
    NoSuchRank {
        /// The rank that was named.
        rank: usize,
        /// Ranks in the group.
        size: usize,
    },
    /// A dtype that is not exchanged.
    #[error("tensors of {0} are not exchanged: cast them to f32, f16, bf16, i32 or u8")]
    Dtype(String),
    /// The group was closed, or another of its operations failed before.
    #[error("the group was given up: {0}")]
    Closed(String),
}

impl CommError {
    /// What ended the exchange with a peer, as the error of an operation.
    pub fn of(peer: Peer, failure: Failure, call: Option<Call>) -> Self {
        match failure {
            Failure::Gone(cause) => Self::Lost { peer, cause, call },
            Failure::Damaged(cause) => Self::Corrupt { peer, cause, call },
            Failure::Late(after) => Self::TimedOut { peer, after, call },
        }
    }
}

fn during(call: &Option<Call>) -> String {
    call.map_or_else(|| "no operation".to_string(), |call| call.to_string())
}

/// As [`during`], of a library that brings the ranks of a group together before any operation.
fn during_or_before(call: &Option<Call>) -> String {
    call.map_or_else(|| "bringing ranks together".to_string(), |call| call.to_string())
}
