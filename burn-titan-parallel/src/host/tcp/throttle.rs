//! An artificial link: no more bytes a second leave this rank than it is told, to all peers together.
//!
//! For experiments on one host, whose own links are faster than any network: whether communication hides behind
//! computation shows only where it takes time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that wait for their turn at once.
pub const PIECE: usize = 32 << 10;

/// Time that was not used may be made up for: a sleep takes longer than it should by this much, or less.
const SLACK: Duration = Duration::from_millis(5);

/// The link.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: f64,
    /// When all that was sent so far is through.
    free: Mutex<Instant>,
}

impl Throttle {
    /// A link that is free.
    pub fn new(bytes_per_second: f64) -> Self {
        Self { bytes_per_second, free: Mutex::new(Instant::now()) }
    }

    /// Returns once so many bytes have gone through, after all that were sent before.
    pub async fn pass(&self, bytes: usize) {
        tokio::time::sleep_until(self.reserve(bytes, Instant::now()).into()).await;
    }

    /// When so many bytes will be through.
    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let start = now.checked_sub(SLACK).map_or(*free, |earliest| earliest.max(*free));
        *free = start + takes;
        *free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_one_after_the_other() {
        let link = Throttle::new(1e6);
        let now = Instant::now() + SLACK;
        let through = [1000, 2000].map(|bytes| link.reserve(bytes, now));
        assert_eq!(through[1] - through[0], Duration::from_millis(2));
        // What was not used for long is lost, but for the slack.
        let later = now + Duration::from_secs(1);
        assert_eq!(link.reserve(1000, later), later - SLACK + Duration::from_millis(1));
    }
}
