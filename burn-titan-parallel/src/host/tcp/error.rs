//! Why ranks did not come together.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::super::error::{CommError, Peer};

/// Why a rank was not let in.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// The two programs speak different versions of the protocol.
    #[error("it speaks version {theirs} of the protocol, and this program version {ours}")]
    Version {
        /// Of the program that says so.
        ours: u32,
        /// Of the other.
        theirs: u32,
    },
    /// The tokens are not equal.
    #[error("the tokens are not the same")]
    Token,
    /// Different ideas of how many ranks there are.
    #[error("rank {rank} on {host} was started for {theirs} ranks, but rank 0 for {ours}")]
    WorldSize {
        /// The rank that was refused.
        rank: usize,
        /// Its host.
        host: String,
        /// Ranks as rank 0 knows them.
        ours: usize,
        /// Ranks as the refused one knows them.
        theirs: usize,
    },
    /// No such rank is awaited from outside.
    #[error("rank {rank} on {host} is none of the ranks 1 to {} that may join", .world_size - 1)]
    NoSuchRank {
        /// The rank that was refused.
        rank: usize,
        /// Its host.
        host: String,
        /// Ranks of the world.
        world_size: usize,
    },
    /// Two processes claim one rank.
    #[error("{claimant} claims to be rank {}, but {holder} has already joined", .holder.rank)]
    Taken {
        /// Who has joined.
        holder: Peer,
        /// The host of who was refused.
        claimant: String,
    },
    /// Not all ranks came before the deadline.
    #[error("{}", missing(.ranks, *.after, &[]))]
    Missing {
        /// The ranks that did not join.
        ranks: Vec<usize>,
        /// How long they were awaited.
        after: Duration,
    },
    /// The message is not the one that belongs here.
    #[error("an unexpected message: {0}")]
    Unexpected(String),
}

/// Why a rank could not join the others.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinError {
    /// The config makes no sense by itself.
    #[error("{0}")]
    Config(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        cause: String,
    },
    /// The system gave no thread, socket or randomness.
    #[error("the system refuses {what}: {cause}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system says.
        cause: String,
    },
    /// Rank 0 does not answer.
    #[error("rank 0 cannot be reached at {address} within {} s: {cause}", .after.as_secs_f64())]
    NoStore {
        /// Where it should be.
        address: String,
        /// What went wrong in the last attempt.
        cause: String,
        /// How long it was tried.
        after: Duration,
    },
    /// Rank 0, or a peer, refuses this rank.
    #[error("rank {rank} was refused at {address}: {reason}")]
    Refused {
        /// This rank.
        rank: usize,
        /// Who refused.
        address: String,
        /// Why.
        reason: Refusal,
    },
    /// On rank 0: not all ranks came before the deadline.
    #[error("{}", missing(.ranks, *.after, .refused))]
    Missing {
        /// The ranks that did not join.
        ranks: Vec<usize>,
        /// How long they were awaited.
        after: Duration,
        /// Who knew the token, but was refused.
        refused: Vec<Refusal>,
    },
    /// A peer of the table cannot be reached.
    #[error("{peer} cannot be reached at {address}: {cause}")]
    NoPeer {
        /// The peer.
        peer: Peer,
        /// Where it says that it listens.
        address: SocketAddr,
        /// What went wrong in the last attempt.
        cause: String,
    },
    /// A peer of the table did not come.
    #[error("{peer} did not connect within {} s", .after.as_secs_f64())]
    Absent {
        /// The peer.
        peer: Peer,
        /// How long it was awaited.
        after: Duration,
    },
    /// A rank was lost while the ranks came together.
    #[error("{0}")]
    Lost(CommError),
}

impl JoinError {
    /// Whether something must be changed before another attempt: addresses, secrets or numbers of ranks that
    /// cannot be right. All else may come from a rank that was lost or late.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Config(_) | Self::Listen { .. } => true,
            Self::Refused { reason, .. } => !matches!(reason, Refusal::Missing { .. }),
            _ => false,
        }
    }
}

fn missing(ranks: &[usize], after: Duration, refused: &[Refusal]) -> String {
    let names: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
    let mut text = format!("{noun} {} did not join within {:?}", names.join(", "), after);
    for refusal in refused {
        text.push_str(&format!("; refused: {refusal}"));
    }
    text
}
