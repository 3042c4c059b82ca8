//! Proving that a schedule runs.
//!
//! [`prove()`] looks at what the ranks will do, messages and all, in three passes:
//!
//! 1. **Steps**: each rank computes all of its own stages and nothing else, on every micro-batch: the forward once,
//!    then the whole backward once, or the backward for the input once and then that for the weights once.
//! 2. **Values**: what a step or a send needs was made on the same rank or received before. Since a value can only be
//!    sent by the rank that made it, every forward of a stage is after that of the stage before, and every backward
//!    after that of the stage after.
//! 3. **Messages**: every send has its receive, between two ranks both are in the same order, and every rank comes to
//!    its end even if each send and each receive waits for its other side.

use std::collections::{HashMap, HashSet};
use std::fmt;

use thiserror::Error;

use super::lower::{Lowered, Message, Operation};
use super::schedule::{Kind, Schedule, Step};

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

/// Proves `lowered`.
///
/// # Errors
/// The first thing that is wrong, by rank and position, of the first pass that finds anything.
pub fn prove(lowered: &Lowered) -> Result<(), Fault> {
    for (rank, operations) in lowered.operations.iter().enumerate() {
        let steps =
            operations.iter().enumerate().filter_map(|(position, operation)| match operation {
                Operation::Compute(step) => Some((position, *step)),
                _ => None,
            });
        RankSteps::new(rank, &lowered.owner, lowered.micro_batches)
            .check(steps, operations.len())?;
    }
    (0..lowered.operations.len()).try_for_each(|rank| check_values(lowered, rank))?;
    check_messages(lowered)?;
    check_progress(lowered)
}

/// The first pass, of lists without messages.
pub(super) fn check_steps(schedule: &Schedule) -> Result<(), Fault> {
    for (rank, steps) in schedule.steps().iter().enumerate() {
        let positions = steps.iter().copied().enumerate();
        RankSteps::new(rank, schedule.owner(), schedule.micro_batches())
            .check(positions, steps.len())?;
    }
    Ok(())
}

/// The steps of one rank, and where they were seen.
struct RankSteps<'a> {
    rank: usize,
    owner: &'a [usize],
    micro_batches: usize,
    seen: HashMap<Step, usize>,
}

impl<'a> RankSteps<'a> {
    fn new(rank: usize, owner: &'a [usize], micro_batches: usize) -> Self {
        Self { rank, owner, micro_batches, seen: HashMap::new() }
    }

    fn check(
        mut self,
        steps: impl Iterator<Item = (usize, Step)>,
        end: usize,
    ) -> Result<(), Fault> {
        let rank = self.rank;
        for (position, step) in steps {
            if let Some(reason) = self.refusal(step) {
                let operation = Some(Operation::Compute(step));
                return Err(Fault { rank, position, operation, reason });
            }
            self.seen.insert(step, position);
        }
        match self.missing() {
            Some(missing) => {
                let reason = Reason::Missing { missing };
                Err(Fault { rank, position: end, operation: None, reason })
            }
            None => Ok(()),
        }
    }

    fn refusal(&self, step: Step) -> Option<Reason> {
        let stages = self.owner.len();
        let Some(owner) = self.owner.get(step.stage).copied() else {
            return Some(Reason::NoSuchStage { stages });
        };
        if step.micro >= self.micro_batches {
            return Some(Reason::NoSuchMicroBatch { micro_batches: self.micro_batches });
        }
        if owner != self.rank {
            return Some(Reason::OtherOwner { owner });
        }
        if let Some(first) = self.seen.get(&step).copied() {
            return Some(Reason::Again { first });
        }
        let other = |kind| self.seen.get(&Step { kind, ..step }).copied();
        let (needed, exclusive) = match step.kind {
            Kind::Forward => return None,
            Kind::Backward => {
                let split = other(Kind::BackwardInput).or(other(Kind::BackwardWeight));
                (Kind::Forward, split)
            }
            Kind::BackwardInput => (Kind::Forward, other(Kind::Backward)),
            Kind::BackwardWeight => (Kind::BackwardInput, other(Kind::Backward)),
        };
        if let Some(first) = exclusive {
            return Some(Reason::WholeAndSplit { first });
        }
        let needed = Step { kind: needed, ..step };
        (!self.seen.contains_key(&needed)).then_some(Reason::TooEarly { needed })
    }

    fn missing(&self) -> Option<Step> {
        let mine = (0..self.owner.len()).filter(|stage| self.owner[*stage] == self.rank);
        let mut all =
            mine.flat_map(|stage| (0..self.micro_batches).map(move |micro| (stage, micro)));
        all.find_map(|(stage, micro)| {
            let at = |kind| Step { kind, stage, micro };
            let seen = |kind| self.seen.contains_key(&at(kind));
            if !seen(Kind::Forward) {
                Some(at(Kind::Forward))
            } else if seen(Kind::Backward) || seen(Kind::BackwardWeight) {
                None
            } else if seen(Kind::BackwardInput) {
                Some(at(Kind::BackwardWeight))
            } else {
                Some(at(Kind::Backward))
            }
        })
    }
}

/// The second pass, of one rank.
fn check_values(lowered: &Lowered, rank: usize) -> Result<(), Fault> {
    let stages = lowered.owner.len();
    // What is on this rank, and where each message was sent or received.
    let mut made: HashSet<Message> = HashSet::new();
    let mut messages: HashMap<Message, usize> = HashMap::new();
    for (position, operation) in lowered.operations[rank].iter().enumerate() {
        let refusal = match *operation {
            Operation::Compute(step) => {
                let refusal = Message::needed_by(step, stages).and_then(|needed| {
                    if lowered.owner[needed.stage] == rank {
                        (!made.contains(&needed)).then_some(Reason::NotMade { needed })
                    } else {
                        (!messages.contains_key(&needed)).then_some(Reason::NotReceived { needed })
                    }
                });
                made.extend(Message::made_by(step, stages));
                refusal
            }
            Operation::Send { message, to } => {
                let refusal = route(lowered, message, rank, to).or_else(|| {
                    (!made.contains(&message)).then_some(Reason::NotMade { needed: message })
                });
                refusal.or_else(|| again(&mut messages, message, position))
            }
            Operation::Receive { message, from } => route(lowered, message, from, rank)
                .or_else(|| again(&mut messages, message, position)),
        };
        if let Some(reason) = refusal {
            return Err(Fault { rank, position, operation: Some(*operation), reason });
        }
    }
    Ok(())
}

/// Whether `message` goes from one of these ranks to the other.
fn route(lowered: &Lowered, message: Message, from: usize, to: usize) -> Option<Reason> {
    let makes = lowered.owner.get(message.stage).copied();
    let needs = message.needed_at().and_then(|stage| lowered.owner.get(stage)).copied();
    let right = makes == Some(from) && needs == Some(to) && from != to;
    (!right || message.micro >= lowered.micro_batches).then_some(Reason::Astray)
}

/// Notes a message; whether it was noted before.
fn again(
    messages: &mut HashMap<Message, usize>,
    message: Message,
    position: usize,
) -> Option<Reason> {
    messages.insert(message, position).map(|first| Reason::Again { first })
}

/// The third pass: that every send has its receive, in the same order.
fn check_messages(lowered: &Lowered) -> Result<(), Fault> {
    let mut sends: HashMap<(usize, usize), Vec<(usize, Message)>> = HashMap::new();
    let mut receives: HashMap<(usize, usize), Vec<(usize, Message)>> = HashMap::new();
    for (rank, operations) in lowered.operations.iter().enumerate() {
        for (position, operation) in operations.iter().enumerate() {
            match *operation {
                Operation::Compute(_) => {}
                Operation::Send { message, to } => {
                    sends.entry((rank, to)).or_default().push((position, message));
                }
                Operation::Receive { message, from } => {
                    receives.entry((from, rank)).or_default().push((position, message));
                }
            }
        }
    }
    let mut pairs: Vec<(usize, usize)> = sends.keys().chain(receives.keys()).copied().collect();
    pairs.sort_unstable();
    pairs.dedup();
    for (from, to) in pairs {
        let none = Vec::new();
        let sent = sends.get(&(from, to)).unwrap_or(&none);
        let received = receives.get(&(from, to)).unwrap_or(&none);
        check_pair(from, to, sent, received)?;
    }
    Ok(())
}

/// The messages of one rank to another.
fn check_pair(
    from: usize,
    to: usize,
    sent: &[(usize, Message)],
    received: &[(usize, Message)],
) -> Result<(), Fault> {
    let lacks = |messages: &[(usize, Message)], others: &[(usize, Message)]| {
        let others: HashSet<Message> = others.iter().map(|(_, message)| *message).collect();
        messages.iter().find(|(_, message)| !others.contains(message)).copied()
    };
    if let Some((position, message)) = lacks(sent, received) {
        let operation = Some(Operation::Send { message, to });
        return Err(Fault {
            rank: from,
            position,
            operation,
            reason: Reason::NeverReceived { to },
        });
    }
    if let Some((position, message)) = lacks(received, sent) {
        let operation = Some(Operation::Receive { message, from });
        return Err(Fault { rank: to, position, operation, reason: Reason::NeverSent { from } });
    }
    match sent.iter().zip(received).find(|(sent, received)| sent.1 != received.1) {
        Some(((_, sent), (position, message))) => Err(Fault {
            rank: to,
            position: *position,
            operation: Some(Operation::Receive { message: *message, from }),
            reason: Reason::OutOfOrder { from, sent: *sent },
        }),
        None => Ok(()),
    }
}

/// The third pass: that every rank comes to its end, where both sides of a message wait for each other.
fn check_progress(lowered: &Lowered) -> Result<(), Fault> {
    let mut positions = vec![0; lowered.operations.len()];
    // Ranks that may be able to go on.
    let mut awake: Vec<usize> = (0..positions.len()).collect();
    while let Some(rank) = awake.pop() {
        while let Some(operation) = lowered.operations[rank].get(positions[rank]) {
            if let Some(peer) = peer(*operation) {
                let other = lowered.operations[peer].get(positions[peer]).copied();
                if other.is_none_or(|other| !meets(rank, *operation, peer, other)) {
                    break;
                }
                positions[peer] += 1;
                awake.push(peer);
            }
            positions[rank] += 1;
        }
    }
    let waits: Vec<Waiting> = (0..positions.len())
        .filter_map(|rank| {
            let position = positions[rank];
            let operation = *lowered.operations[rank].get(position)?;
            Some(Waiting { rank, position, operation, peer: peer(operation)? })
        })
        .collect();
    Fault::stuck(waits).map_or(Ok(()), Err)
}

fn peer(operation: Operation) -> Option<usize> {
    match operation {
        Operation::Compute(_) => None,
        Operation::Send { to, .. } => Some(to),
        Operation::Receive { from, .. } => Some(from),
    }
}

/// Whether `one`, on `rank`, and `other`, on `peer`, are the two sides of one message.
fn meets(rank: usize, one: Operation, peer: usize, other: Operation) -> bool {
    match (one, other) {
        (Operation::Send { message, to }, Operation::Receive { message: expected, from })
        | (
            Operation::Receive { message: expected, from: to },
            Operation::Send { message, to: from },
        ) => message == expected && to == peer && from == rank,
        _ => false,
    }
}
