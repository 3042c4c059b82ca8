//! From steps to messages.

use std::fmt;

use super::fault::Fault;
use super::prove::{check_steps, prove};
use super::schedule::{Kind, Schedule, Step};
use super::simulate::{Costs, StageCosts, run};

/// What goes from one stage to its neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// The output of a stage, for the stage after.
    Activation,
    /// The gradient of a stage's input, for the stage before.
    Gradient,
}

/// A value of one stage and micro-batch that another stage needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    /// What it is.
    pub value: Value,
    /// The stage that makes it.
    pub stage: usize,
    /// The micro-batch.
    pub micro: usize,
}

impl Message {
    /// What `step` makes for another stage of `stages`.
    pub fn made_by(step: Step, stages: usize) -> Option<Self> {
        let Step { kind, stage, micro } = step;
        if kind == Kind::Forward && stage + 1 < stages {
            Some(Self { value: Value::Activation, stage, micro })
        } else if kind.makes_gradient() && stage > 0 {
            Some(Self { value: Value::Gradient, stage, micro })
        } else {
            None
        }
    }

    /// What `step` needs of another stage of `stages`.
    pub fn needed_by(step: Step, stages: usize) -> Option<Self> {
        let Step { kind, stage, micro } = step;
        if kind == Kind::Forward && stage > 0 {
            Some(Self { value: Value::Activation, stage: stage - 1, micro })
        } else if kind.makes_gradient() && stage + 1 < stages {
            Some(Self { value: Value::Gradient, stage: stage + 1, micro })
        } else {
            None
        }
    }

    /// The stage that needs it, where the model has one.
    pub fn needed_at(self) -> Option<usize> {
        match self.value {
            Value::Activation => self.stage.checked_add(1),
            Value::Gradient => self.stage.checked_sub(1),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = match self.value {
            Value::Activation => "activation",
            Value::Gradient => "gradient",
        };
        write!(f, "the {value} that stage {} makes of micro-batch {}", self.stage, self.micro)
    }
}

/// What a rank does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Computes a step.
    Compute(Step),
    /// Sends a value to a rank.
    Send {
        /// The value.
        message: Message,
        /// The rank that receives it.
        to: usize,
    },
    /// Receives a value from a rank.
    Receive {
        /// The value.
        message: Message,
        /// The rank that sends it.
        from: usize,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compute(step) => write!(f, "{step}"),
            Self::Send { message, to } => write!(f, "send {message} to rank {to}"),
            Self::Receive { message, from } => write!(f, "receive {message} from rank {from}"),
        }
    }
}

/// A schedule with its messages.
///
/// Two stages of the same rank hand values over without any. An executor may begin a send where it stands and go on,
/// and begin a receive and wait for it only at the step that needs it; between two ranks messages keep their order.
/// It may as well wait at each for the other side: [`prove`](super::prove::prove()) shows that this ends too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lowered {
    /// The rank of each stage.
    pub owner: Vec<usize>,
    /// Micro-batches of a training step.
    pub micro_batches: usize,
    /// The operations of each rank, in order.
    pub operations: Vec<Vec<Operation>>,
}

impl Schedule {
    /// Inserts the messages and proves what comes out.
    ///
    /// A send stands right after the step that makes the value. Its receive stands where the receiver is at that
    /// moment, in a simulation in which forwards and both halves of backwards take the same time: late enough that
    /// a receiver that blocks loses no time, and since all messages are inserted in the order of one clock,
    /// no ring of ranks can wait for each other.
    ///
    /// # Errors
    /// The schedule is wrong.
    pub fn lower(&self) -> Result<Lowered, Fault> {
        check_steps(self)?;
        let costs = Costs::uniform(self.stages(), StageCosts::UNIT);
        let line = run(self, &costs)?;
        // (time, messages first, rank, operation): all that happens, in the order of the clock.
        let mut events = Vec::new();
        for (rank, spans) in line.ranks.iter().enumerate() {
            events.extend(
                spans.iter().map(|span| (span.start, 1, rank, Operation::Compute(span.step))),
            );
        }
        for transfer in &line.transfers {
            let (message, from, to) = (transfer.message, transfer.from, transfer.to);
            events.push((transfer.start, 0, from, Operation::Send { message, to }));
            events.push((transfer.start, 0, to, Operation::Receive { message, from }));
        }
        // Stable: messages of the same moment stay in the same order on all ranks.
        events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut operations = vec![Vec::new(); self.ranks()];
        for (_, _, rank, operation) in events {
            operations[rank].push(operation);
        }
        let owner = self.owner().to_vec();
        let lowered = Lowered { owner, micro_batches: self.micro_batches(), operations };
        prove(&lowered)?;
        Ok(lowered)
    }
}
