//! What one collective operation is: the part that all ranks must agree on.

use std::fmt;

use super::element::{Element, Reduction};

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Every rank gets the reduction of all.
    AllReduce = 1,
    /// Every rank gets all shards.
    AllGather = 2,
    /// Every rank gets its range of the reduction.
    ReduceScatter = 3,
    /// Every rank sends a range to every rank.
    AllToAll = 4,
    /// Every rank gets what the root has.
    Broadcast = 5,
    /// One rank to another.
    SendReceive = 6,
    /// Nobody goes on before all are there.
    Barrier = 7,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::AllToAll,
        Self::Broadcast,
        Self::SendReceive,
        Self::Barrier,
    ];

    /// The kind with this code in a message.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Its name in messages, as in the config and the benchmarks.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::SendReceive => "send_receive",
            Self::Barrier => "barrier",
        }
    }
}

/// One operation of a group. All ranks of the group must make equal calls in the same order; a message
/// carries its call, so that a rank that makes another one is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Call {
    /// What is done.
    pub kind: Kind,
    /// The elements' type.
    pub element: Element,
    /// For the kinds that reduce; [`Reduction::Sum`] elsewhere.
    pub reduction: Reduction,
    /// For the kinds that have one: the group's rank that begins.
    pub root: u32,
    /// Elements in all.
    pub count: u64,
    /// A digest of the ranks' lengths, where they may differ.
    pub shape: u64,
    /// The how-manieth operation of the group, from 1.
    pub sequence: u64,
}

impl Call {
    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.count as usize * self.element.size()
    }

    /// The digest of lengths for [`Call::shape`].
    pub fn digest(lengths: &[usize]) -> u64 {
        // FNV-1a: it only has to tell honest mistakes apart.
        lengths
            .iter()
            .flat_map(|x| (*x as u64).to_le_bytes())
            .fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, element, reduction, root, count, sequence, .. } = self;
        match kind {
            Kind::Barrier => write!(f, "operation {sequence}: barrier")?,
            Kind::AllReduce | Kind::ReduceScatter => {
                write!(
                    f,
                    "operation {sequence}: {} ({reduction}) of {count} x {element}",
                    kind.name()
                )?;
            }
            _ => write!(f, "operation {sequence}: {} of {count} x {element}", kind.name())?,
        }
        if *kind == Kind::Broadcast { write!(f, " from rank {root}") } else { Ok(()) }
    }
}
