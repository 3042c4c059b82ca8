//! Exchanging buffers of host memory between ranks. Knows no tensors.
//!
//! [`Links`] carry whole messages between any two ranks, into the receiver's [`mailbox::Mailbox`]; a
//! [`Group`] makes collective operations of them; a [`Queue`] runs a group's operations one after the
//! other beside the training thread. What a queue does, any [`Exchange`] does.

#[cfg(any(feature = "mpi", feature = "nccl", test))]
#[cfg_attr(not(any(feature = "mpi", feature = "nccl")), allow(dead_code))]
pub(crate) mod beat;
pub mod call;
mod counted;
pub mod element;
pub mod error;
pub mod exchange;
pub mod frame;
pub mod group;
pub mod links;
pub mod local;
pub mod mailbox;
mod memory;
pub mod payload;
pub mod queue;
pub(crate) mod segments;
pub mod tcp;
mod traffic;

pub use call::{Call, Kind};
pub use counted::Counted;
pub use element::{Element, Reduction};
pub use error::{CommError, Peer};
pub use exchange::{Exchange, Pending, Task};
pub use group::Group;
pub use links::{FailureHook, Links};
pub use local::LocalLinks;
pub use memory::Memory;
pub use queue::Queue;
pub use tcp::{TcpConfig, TcpLinks};
pub use traffic::{bytes_sent, messages_in_flight};

#[cfg(test)]
mod tests;
