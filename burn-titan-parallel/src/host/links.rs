//! How a rank reaches its peers.

use std::sync::Arc;

use super::error::Peer;
use super::mailbox::{Failure, Mailbox, Message};

/// The connections of one rank to all ranks of the world. Messages from one rank to another arrive
/// whole and in order, in the receiver's [`Mailbox`].
pub trait Links: Send + Sync {
    /// This rank in the world.
    fn rank(&self) -> usize;

    /// Ranks in the world.
    fn world_size(&self) -> usize;

    /// How errors name a rank.
    fn peer(&self, rank: usize) -> Peer;

    /// What has arrived here.
    fn mailbox(&self) -> &Arc<Mailbox>;

    /// Sends a message of `group` to a world rank. Returns once the message is on its way.
    ///
    /// # Errors
    /// If the peer cannot be reached any more.
    fn send(&self, to: usize, group: u64, message: Message) -> Result<(), Failure>;

    /// Tells every rank, as far as they can be reached, that this one gives up, and why.
    fn abort(&self, reason: &str);
}
