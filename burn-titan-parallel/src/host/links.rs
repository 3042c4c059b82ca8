//! How a rank reaches its peers.

use std::sync::Arc;

use super::call::Call;
use super::error::{CommError, Peer};
use super::mailbox::{Failure, Mailbox};

/// Called once with what has ended the world.
pub type FailureHook = Box<dyn Fn(&CommError) + Send>;

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

    /// Sends the message `step` of a group's operation to a world rank. Returns once the payload has been
    /// written or copied, whether the peer takes it or not.
    ///
    /// # Errors
    /// If the peer cannot be reached any more.
    fn send(
        &self,
        to: usize,
        group: u64,
        call: &Call,
        step: u32,
        payload: &[u8],
    ) -> Result<(), Failure>;

    /// Who is really to blame, where `suspect` seems to be: a peer that waits for another one, or that
    /// has ended because of it, is not. May ask the other ranks, for a bounded time.
    fn judge(&self, suspect: usize, failure: Failure) -> (usize, Failure) {
        (suspect, failure)
    }

    /// Sets what is called, on a thread of its own, once the world has failed; at once, if it has. Every
    /// operation that is under way fails by itself; this is for a training thread that waits for none.
    /// Links of threads never call it: their process knows by itself when one of them ends.
    fn on_failure(&self, _hook: FailureHook) {}

    /// Tells every rank, as far as they can be reached, that this one gives up, and why.
    fn abort(&self, reason: &str);

    /// Ends the exchange in good order, once every rank has called it.
    ///
    /// # Errors
    /// If a rank is lost, or does not call it in time.
    fn close(&self) -> Result<(), CommError> {
        Ok(())
    }
}
