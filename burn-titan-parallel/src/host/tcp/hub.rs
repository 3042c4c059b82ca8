//! Rank 0's view of all ranks: who lives, what they do, and who is to blame when something fails.
//!
//! Only decides; what it is told and what it says goes through [`super::control`]. The first culprit
//! is the only one: what fails afterwards fails because of it. A connection that ends without a
//! goodbye, a rank that gives up and a rank that gives no sign of life are culprits at once. A rank
//! that is merely late may be waiting for another: everybody is asked, and from the late rank the
//! waits are followed to the rank that waits for nobody, or that does not answer.

use std::time::{Duration, Instant};

use super::super::mailbox::Failure;
use super::protocol::{Control, Status};

/// How long the ranks may take to say that they are there, once somebody was late.
pub const INQUIRY: Duration = Duration::from_secs(1);

/// What is heard of a rank.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Said(Control),
    /// Its connection ended: why.
    Ended(Failure),
}

/// A late rank, and who has answered since.
#[derive(Debug)]
struct Inquiry {
    number: u64,
    since: Instant,
    suspect: usize,
    after: Duration,
    answered: Vec<bool>,
}

/// What is known of a rank.
#[derive(Debug, Clone)]
struct Member {
    heard: Instant,
    doing: Vec<Status>,
    ready: bool,
    leaving: bool,
    ended: bool,
}

/// The state of the world.
#[derive(Debug)]
pub struct Hub {
    members: Vec<Member>,
    /// A rank is dead when it was silent for so long.
    silence: Duration,
    inquiry: Option<Inquiry>,
    inquiries: u64,
    culprit: Option<usize>,
    farewell: bool,
}

impl Hub {
    /// A world of ranks that were all heard just now.
    pub fn new(world_size: usize, silence: Duration, now: Instant) -> Self {
        let member =
            Member { heard: now, doing: Vec::new(), ready: false, leaving: false, ended: false };
        Self {
            members: vec![member; world_size],
            silence,
            inquiry: None,
            inquiries: 0,
            culprit: None,
            farewell: false,
        }
    }

    /// Whether every rank but this one has gone: nobody is left who must be told anything.
    pub fn alone(&self) -> bool {
        let gone = |(rank, member): (usize, &Member)| member.ended || Some(rank) == self.culprit;
        self.members.iter().enumerate().skip(1).all(gone)
    }

    /// Takes what was heard of a rank; returns what everybody must be told.
    pub fn hear(&mut self, rank: usize, heard: Heard, now: Instant) -> Option<Control> {
        self.members[rank].heard = now;
        let said = match heard {
            Heard::Said(said) => said,
            Heard::Ended(failure) => {
                self.members[rank].ended = true;
                return self.condemn(rank, failure);
            }
        };
        match said {
            Control::Ready => {
                self.members[rank].ready = true;
                self.once_all(|member| member.ready, Control::Go)
            }
            // It has heard the farewell.
            Control::Goodbye if self.farewell => {
                self.members[rank].ended = true;
                None
            }
            Control::Goodbye => {
                self.members[rank].leaving = true;
                let farewell = self.once_all(|member| member.leaving, Control::Farewell);
                self.farewell |= farewell.is_some();
                farewell
            }
            Control::Beat { doing, answers } => {
                self.members[rank].doing = doing;
                self.answer(rank, answers)
            }
            Control::Overdue(after) => {
                let leaving = self.members[rank].leaving;
                let is_behind =
                    |member: &Member| if leaving { !member.leaving } else { !member.ready };
                let behind = self.members.iter().position(is_behind)?;
                self.condemn(behind, Failure::Late(after))
            }
            Control::GaveUp(reason) => self.condemn(rank, Failure::Gone(reason)),
            Control::Suspect { peer, .. } if peer >= self.members.len() => None,
            Control::Suspect { peer, failure: Failure::Late(after) } => {
                self.inquire(peer, after, now)
            }
            Control::Suspect { peer, failure } => self.condemn(peer, seen_by(rank, failure)),
            other => self.condemn(rank, Failure::Damaged(format!("it sent {other:?}"))),
        }
    }

    /// Looks at the time, of which `stalled` went by while this process did not run: that is not held
    /// against anybody.
    pub fn tick(&mut self, now: Instant, stalled: bool) -> Option<Control> {
        if stalled {
            self.members.iter_mut().for_each(|member| member.heard = now);
        }
        let silent = |rank: &usize| {
            let member = &self.members[*rank];
            !member.ended && now.duration_since(member.heard) > self.silence
        };
        if !self.farewell
            && let Some(rank) = (1..self.members.len()).find(silent)
        {
            return self
                .condemn(rank, no_sign_of_life(now.duration_since(self.members[rank].heard)));
        }
        match &self.inquiry {
            Some(inquiry) if now.duration_since(inquiry.since) > INQUIRY => self.conclude(),
            _ => None,
        }
    }

    fn once_all(&self, is: impl Fn(&Member) -> bool, say: Control) -> Option<Control> {
        if self.culprit.is_none() && self.members.iter().all(is) { Some(say) } else { None }
    }

    fn inquire(&mut self, suspect: usize, after: Duration, now: Instant) -> Option<Control> {
        if self.inquiry.is_some() || self.culprit.is_some() || self.farewell {
            return None;
        }
        self.inquiries += 1;
        let (number, answered) = (self.inquiries, vec![false; self.members.len()]);
        self.inquiry = Some(Inquiry { number, since: now, suspect, after, answered });
        Some(Control::Ask(number))
    }

    fn answer(&mut self, rank: usize, answers: u64) -> Option<Control> {
        match &mut self.inquiry {
            Some(inquiry) if inquiry.number == answers => {
                inquiry.answered[rank] = true;
                if inquiry.answered.iter().all(|answered| *answered) {
                    self.conclude()
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    /// Ends the inquiry: blames who does not answer, or else who is waited for and waits for nobody.
    fn conclude(&mut self) -> Option<Control> {
        let inquiry = self.inquiry.take()?;
        let dumb = (0..self.members.len())
            .filter(|rank| !inquiry.answered[*rank])
            .min_by_key(|rank| self.members[*rank].heard);
        match dumb {
            Some(rank) => self.condemn(rank, no_sign_of_life(INQUIRY)),
            None => self.condemn(self.end_of_waits(inquiry.suspect), Failure::Late(inquiry.after)),
        }
    }

    /// Who is waited for, by way of others, and waits for nobody.
    fn end_of_waits(&self, suspect: usize) -> usize {
        let mut reached = vec![suspect];
        let mut next = 0;
        while let Some(rank) = reached.get(next).copied() {
            let waits = self.members[rank].doing.iter().filter_map(|status| status.waits_for);
            let mut waits = waits.filter(|rank| *rank < self.members.len()).peekable();
            if waits.peek().is_none() {
                return rank;
            }
            for other in waits {
                if !reached.contains(&other) {
                    reached.push(other);
                }
            }
            next += 1;
        }
        // A ring of waits: nobody is more to blame than the one who was waited for.
        suspect
    }

    fn condemn(&mut self, rank: usize, failure: Failure) -> Option<Control> {
        if self.culprit.is_some() || self.farewell {
            return None;
        }
        self.culprit = Some(rank);
        self.inquiry = None;
        Some(Control::Verdict(rank, self.last_seen(rank, failure)))
    }

    /// Adds what the rank was last known to do.
    fn last_seen(&self, rank: usize, failure: Failure) -> Failure {
        let last = self.members[rank].doing.iter().max_by_key(|status| status.sequence);
        match (failure, last) {
            (Failure::Gone(cause), Some(last)) => {
                Failure::Gone(format!("{cause}; last seen in {}", last.operation))
            }
            (failure, _) => failure,
        }
    }
}

fn seen_by(rank: usize, failure: Failure) -> Failure {
    match failure {
        Failure::Gone(cause) => Failure::Gone(format!("{cause}, says rank {rank}")),
        Failure::Damaged(cause) => Failure::Damaged(format!("{cause}, says rank {rank}")),
        late => late,
    }
}

/// What is said of a rank that was silent for so long.
pub fn no_sign_of_life(silent: Duration) -> Failure {
    Failure::Gone(format!("no sign of life for {:.1} s", silent.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(cause: &str) -> Failure {
        Failure::Gone(cause.to_string())
    }

    fn late() -> Failure {
        Failure::Late(Duration::from_secs(5))
    }

    fn beat(waits_for: Option<usize>, answers: u64) -> Heard {
        let status = Status { group: 1, sequence: 4, operation: "operation 4".into(), waits_for };
        Heard::Said(Control::Beat { doing: vec![status], answers })
    }

    fn verdict(said: Option<Control>) -> Option<(usize, Failure)> {
        match said {
            Some(Control::Verdict(rank, failure)) => Some((rank, failure)),
            _ => None,
        }
    }

    fn hub(size: usize) -> (Hub, Instant) {
        let now = Instant::now();
        (Hub::new(size, Duration::from_secs(4), now), now)
    }

    #[test]
    fn the_first_culprit_is_the_only_one() {
        let (mut hub, now) = hub(3);
        assert!(hub.hear(2, beat(None, 0), now).is_none());
        let said = hub.hear(2, Heard::Ended(gone("closed")), now);
        assert_eq!(verdict(said), Some((2, gone("closed; last seen in operation 4"))));
        assert!(hub.hear(1, Heard::Ended(gone("closed")), now).is_none());
        assert!(hub.alone());
    }

    #[test]
    fn a_silent_rank_is_found_but_not_after_a_stall_of_the_finder() {
        let (mut hub, now) = hub(3);
        let later = now + Duration::from_secs(5);
        assert!(hub.tick(later, true).is_none());
        let later = later + Duration::from_secs(3);
        assert!(hub.hear(1, beat(None, 0), later).is_none());
        let later = later + Duration::from_secs(2);
        assert_eq!(verdict(hub.tick(later, false)), Some((2, gone("no sign of life for 5.0 s"))));
    }

    #[test]
    fn waits_are_followed_to_who_waits_for_nobody() {
        let (mut hub, now) = hub(4);
        let suspect = Control::Suspect { peer: 1, failure: late() };
        let said = hub.hear(3, Heard::Said(suspect), now);
        assert_eq!(said, Some(Control::Ask(1)));
        for (rank, waits_for) in [(0, Some(2)), (1, Some(0)), (3, Some(1))] {
            assert!(hub.hear(rank, beat(waits_for, 1), now).is_none());
        }
        assert_eq!(verdict(hub.hear(2, beat(None, 1), now)), Some((2, late())));
    }

    #[test]
    fn of_a_ring_of_waits_the_suspect_is_named() {
        let (mut hub, now) = hub(2);
        let suspect = Control::Suspect { peer: 1, failure: late() };
        assert_eq!(hub.hear(0, Heard::Said(suspect), now), Some(Control::Ask(1)));
        assert!(hub.hear(0, beat(Some(1), 1), now).is_none());
        assert_eq!(verdict(hub.hear(1, beat(Some(0), 1), now)), Some((1, late())));
    }

    #[test]
    fn who_does_not_answer_is_to_blame() {
        let (mut hub, now) = hub(3);
        let suspect = Control::Suspect { peer: 1, failure: late() };
        assert_eq!(hub.hear(0, Heard::Said(suspect), now), Some(Control::Ask(1)));
        assert!(hub.hear(0, beat(Some(1), 1), now).is_none());
        assert!(hub.hear(1, beat(Some(2), 1), now).is_none());
        let (rank, _) = verdict(hub.tick(now + INQUIRY * 2, false)).unwrap();
        assert_eq!(rank, 2);
    }

    #[test]
    fn who_is_not_ready_or_stays_too_long_is_named() {
        let overdue = || Heard::Said(Control::Overdue(Duration::from_secs(5)));
        let (mut hub, now) = hub(3);
        for rank in [0, 1] {
            assert!(hub.hear(rank, Heard::Said(Control::Ready), now).is_none());
        }
        assert_eq!(verdict(hub.hear(0, overdue(), now)), Some((2, late())));

        let (mut hub, now) = super::tests::hub(3);
        for rank in [0, 2] {
            assert!(hub.hear(rank, Heard::Said(Control::Goodbye), now).is_none());
        }
        assert_eq!(verdict(hub.hear(0, overdue(), now)), Some((1, late())));
    }

    #[test]
    fn who_has_said_goodbye_may_go_once_all_have() {
        let (mut hub, now) = hub(3);
        for rank in [1, 2] {
            assert!(hub.hear(rank, Heard::Said(Control::Goodbye), now).is_none());
        }
        let said = hub.hear(0, Heard::Said(Control::Goodbye), now);
        assert_eq!(said, Some(Control::Farewell));
        // Until they have heard so, or are gone.
        assert!(!hub.alone());
        assert!(hub.hear(1, Heard::Said(Control::Goodbye), now).is_none());
        assert!(!hub.alone());
        assert!(hub.hear(2, Heard::Ended(gone("closed")), now).is_none());
        assert!(hub.alone());
    }
}
