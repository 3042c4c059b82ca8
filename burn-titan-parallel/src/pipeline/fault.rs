//! What can be wrong with a schedule.

use std::fmt;

use thiserror::Error;

use super::lower::{Message, Operation};
use super::schedule::Step;

/// What is wrong with a schedule, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("rank {rank}, {}: {reason}", place(*position, *operation))]
pub struct Fault {
    /// The rank.
    pub rank: usize,
    /// The position in its list, from 0; of its end if something is missing.
    pub position: usize,
    /// What is there.
    pub operation: Option<Operation>,
    /// What is wrong with it.
    pub reason: Reason,
}

fn place(position: usize, operation: Option<Operation>) -> String {
    match operation {
        Some(operation) => format!("position {position}, {operation}"),
        None => format!("at its end, position {position}"),
    }
}

impl Fault {
    /// Why ranks do not come to their ends, given what each of those waits for.
    pub(super) fn stuck(waits: Vec<Waiting>) -> Option<Self> {
        let first = waits.first()?;
        // From rank to rank that it waits for: either round a ring, or to a rank that waits for nothing.
        let mut chain: Vec<Waiting> = Vec::new();
        let mut next = Some(first);
        while let Some(waiting) = next {
            if let Some(start) = chain.iter().position(|other| other.rank == waiting.rank) {
                chain.drain(..start);
                break;
            }
            chain.push(waiting.clone());
            next = waits.iter().find(|other| other.rank == waiting.peer);
        }
        let first = chain.first()?.clone();
        Some(Self {
            rank: first.rank,
            position: first.position,
            operation: Some(first.operation),
            reason: Reason::Stuck { chain },
        })
    }
}

/// A rank that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The rank.
    pub rank: usize,
    /// The position in its list.
    pub position: usize,
    /// What it cannot do.
    pub operation: Operation,
    /// The rank that it waits for.
    pub peer: usize,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, position, operation, peer } = self;
        write!(f, "rank {rank} waits at position {position} ({operation}) for rank {peer}")
    }
}

fn list(chain: &[Waiting]) -> String {
    chain.iter().map(Waiting::to_string).collect::<Vec<_>>().join("; ")
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Reason {
    /// A stage that is not there.
    #[error("there are only the stages 0 to {}", stages - 1)]
    NoSuchStage {
        /// Stages of the model.
        stages: usize,
    },
    /// A micro-batch that is not there.
    #[error("there are only the micro-batches 0 to {}", micro_batches - 1)]
    NoSuchMicroBatch {
        /// Micro-batches of a training step.
        micro_batches: usize,
    },
    /// A stage of another rank.
    #[error("the stage belongs to rank {owner}")]
    OtherOwner {
        /// Its rank.
        owner: usize,
    },
    /// Something is done again.
    #[error("this was done at position {first} already")]
    Again {
        /// Where it was done.
        first: usize,
    },
    /// A whole backward beside a split one.
    #[error(
        "the other way to run this backward stands at position {first}: it is whole, or split, not both"
    )]
    WholeAndSplit {
        /// Where that is.
        first: usize,
    },
    /// A step before one that it needs.
    #[error("{needed} must come before it")]
    TooEarly {
        /// What it needs.
        needed: Step,
    },
    /// Something is not done.
    #[error("{missing} is missing")]
    Missing {
        /// What is missing.
        missing: Step,
    },
    /// A step whose input is not there.
    #[error("it needs {needed}, which was not received before")]
    NotReceived {
        /// What it needs.
        needed: Message,
    },
    /// A step whose input another stage of the same rank has not made.
    #[error("it needs {needed}, which was not made before")]
    NotMade {
        /// What it needs.
        needed: Message,
    },
    /// A message that does not go from the rank that makes the value to the rank that needs it.
    #[error("no such message goes this way: it is made and needed elsewhere, or on one rank")]
    Astray,
    /// A send without its receive.
    #[error("rank {to} never receives it")]
    NeverReceived {
        /// The rank that should.
        to: usize,
    },
    /// A receive without its send.
    #[error("rank {from} never sends it")]
    NeverSent {
        /// The rank that should.
        from: usize,
    },
    /// A receive that meets another send.
    #[error("rank {from} sends {sent} at this point")]
    OutOfOrder {
        /// The rank that sends.
        from: usize,
        /// What it sends.
        sent: Message,
    },
    /// Ranks that wait for ever.
    #[error("no rank can go on: {}", list(chain))]
    Stuck {
        /// The ranks, each waiting for the next. The last waits for the first, or for a rank that has ended.
        chain: Vec<Waiting>,
    },
}
