//! Signs of life of a thread that calls a library: its calls may never come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// When a thread was last seen between two calls.
#[derive(Debug, Clone)]
pub struct Beat {
    start: Instant,
    millis: Arc<AtomicU64>,
}

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoResult {
    /// The thread has ended.
    Ended,
    /// One call takes longer than the time-out.
    Stuck,
}

impl Beat {
    /// The thread is seen now.
    pub fn new() -> Self {
        Self { start: Instant::now(), millis: Arc::default() }
    }

    /// The thread is seen now.
    pub fn seen(&self) {
        self.millis.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits for a result of the thread, which keeps the time-out of operations by itself; this is for calls
    /// that do not come back. A thread that waits for work gives no signs, and work wakes it up.
    ///
    /// # Errors
    /// If there will be no result.
    pub fn wait<T>(&self, result: &Receiver<T>, timeout: Duration) -> Result<T, NoResult> {
        let start = Instant::now();
        loop {
            match result.recv_timeout(timeout.min(Duration::from_secs(1))) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Disconnected) => return Err(NoResult::Ended),
                Err(RecvTimeoutError::Timeout) => {
                    if self.age().min(start.elapsed()) > timeout {
                        return Err(NoResult::Stuck);
                    }
                }
            }
        }
    }

    fn age(&self) -> Duration {
        let seen = Duration::from_millis(self.millis.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_that_gives_no_sign_is_given_up_and_one_that_does_is_waited_for() {
        let (beat, timeout) = (Beat::new(), Duration::from_millis(200));
        let (send, receive) = channel::<u8>();
        assert_eq!(beat.wait(&receive, timeout), Err(NoResult::Stuck));
        let living = beat.clone();
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(2500) {
                living.seen();
                std::thread::sleep(Duration::from_millis(5));
            }
            send.send(7).unwrap();
        });
        // Less than the thread takes, and far more than it sleeps for even on a loaded machine.
        assert_eq!(beat.wait(&receive, Duration::from_millis(1500)), Ok(7));
        thread.join().unwrap();
        assert_eq!(beat.wait(&receive, timeout), Err(NoResult::Ended));
    }
}
