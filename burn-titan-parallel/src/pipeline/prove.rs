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

use super::fault::{Fault, Reason, Waiting};
use super::lower::{Lowered, Message, Operation};
use super::schedule::{Kind, Schedule, Step};

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

/// Where the steps of one stage and micro-batch were seen, in the order of [`Kind::ALL`].
type Seen = [Option<usize>; Kind::ALL.len()];

/// The steps of one rank.
struct RankSteps<'a> {
    rank: usize,
    owner: &'a [usize],
    micro_batches: usize,
    seen: HashMap<(usize, usize), Seen>,
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
            let refusal = self.misplaced(step).or_else(|| {
                let seen = self.seen.entry((step.stage, step.micro)).or_default();
                let refusal = untimely(step, seen);
                seen[step.kind as usize] = Some(position);
                refusal
            });
            if let Some(reason) = refusal {
                let operation = Some(Operation::Compute(step));
                return Err(Fault { rank, position, operation, reason });
            }
        }
        match self.missing() {
            Some(missing) => {
                let reason = Reason::Missing { missing };
                Err(Fault { rank, position: end, operation: None, reason })
            }
            None => Ok(()),
        }
    }

    /// Why `step` is not one of this rank.
    fn misplaced(&self, step: Step) -> Option<Reason> {
        match self.owner.get(step.stage).copied() {
            None => Some(Reason::NoSuchStage { stages: self.owner.len() }),
            Some(_) if step.micro >= self.micro_batches => {
                Some(Reason::NoSuchMicroBatch { micro_batches: self.micro_batches })
            }
            Some(owner) => (owner != self.rank).then_some(Reason::OtherOwner { owner }),
        }
    }

    fn missing(&self) -> Option<Step> {
        let mine = (0..self.owner.len()).filter(|stage| self.owner[*stage] == self.rank);
        let mut all =
            mine.flat_map(|stage| (0..self.micro_batches).map(move |micro| (stage, micro)));
        all.find_map(|(stage, micro)| {
            let kind = match self.seen.get(&(stage, micro)).copied().unwrap_or_default() {
                [None, ..] => Kind::Forward,
                [_, None, None, _] => Kind::Backward,
                [_, None, _, None] => Kind::BackwardWeight,
                _ => return None,
            };
            Some(Step { kind, stage, micro })
        })
    }
}

/// Why `step` cannot run after those that were seen.
fn untimely(step: Step, seen: &Seen) -> Option<Reason> {
    let [_, whole, input, weight] = *seen;
    if let Some(first) = seen[step.kind as usize] {
        return Some(Reason::Again { first });
    }
    let (needed, other) = match step.kind {
        Kind::Forward => return None,
        Kind::Backward => (Kind::Forward, input.or(weight)),
        Kind::BackwardInput => (Kind::Forward, whole),
        Kind::BackwardWeight => (Kind::BackwardInput, whole),
    };
    if let Some(first) = other {
        return Some(Reason::WholeAndSplit { first });
    }
    let early = seen[needed as usize].is_none();
    early.then_some(Reason::TooEarly { needed: Step { kind: needed, ..step } })
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
