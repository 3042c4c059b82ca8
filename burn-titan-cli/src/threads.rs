//! `--simulate`: the ranks of a world as threads of this process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use burn_titan_core::trainer::TrainError;
use burn_titan_parallel::World;

/// How long the others may take to end once a rank has failed.
const GRACE: Duration = Duration::from_secs(2);

/// As much as the main thread has.
const STACK_BYTES: usize = 8 << 20;

/// Why a rank did not reach its end.
enum Failure {
    Error(TrainError),
    Panic(Box<dyn Any + Send>),
}

impl Failure {
    /// Whether the fault is another rank's.
    fn is_of_a_peer(&self) -> bool {
        matches!(self, Self::Error(TrainError::Communication(_)))
    }
}

/// Does the work of every rank on a thread of its own; gives the result of rank 0.
///
/// A rank that fails or panics takes the others down. Those that do not notice within [`GRACE`], because they
/// wait for nobody, are left behind for the end of the process.
///
/// # Errors
/// That of the rank that failed by itself.
///
/// # Panics
/// If a rank does, as that rank.
pub fn run<T: Send + 'static>(
    world: Vec<World>,
    work: impl Fn(World) -> Result<T, TrainError> + Send + Sync + 'static,
) -> Result<T, TrainError> {
    let (sender, ended) = channel();
    let (ranks, work) = (world.len(), Arc::new(work));
    for rank in world {
        let (sender, work) = (sender.clone(), work.clone());
        let name = format!("rank-{}", rank.rank());
        let started = Builder::new().name(name.clone()).stack_size(STACK_BYTES).spawn(move || {
            // A panic has been printed when it comes here.
            let result = catch_unwind(AssertUnwindSafe(|| work(rank.clone())));
            let result = match result {
                Ok(result) => result.map_err(Failure::Error),
                Err(panic) => Err(Failure::Panic(panic)),
            };
            match &result {
                Ok(_) => {}
                Err(Failure::Error(error)) => rank.abort(&error.to_string()),
                Err(Failure::Panic(_)) => rank.abort("it panicked"),
            }
            // Nobody waits for a rank that takes too long to end.
            let _ = sender.send((rank.rank(), result));
        });
        started.map_err(|error| TrainError::File {
            path: "--simulate".into(),
            cause: format!("the thread {name} cannot be started: {error}; ask for fewer ranks"),
        })?;
    }
    drop(sender);
    let (mut first, mut culprit, mut deadline) = (None, None::<Failure>, None);
    for _ in 0..ranks {
        let next = match deadline {
            None => ended.recv().map_err(RecvTimeoutError::from),
            Some(deadline) => {
                ended.recv_timeout(Instant::saturating_duration_since(&deadline, Instant::now()))
            }
        };
        match next {
            Ok((0, Ok(done))) => first = Some(done),
            Ok((_, Ok(_))) => {}
            Ok((_, Err(failure))) => {
                deadline.get_or_insert_with(|| Instant::now() + GRACE);
                // Who fails because of a peer may be heard before it.
                let better = |so_far: &Failure| so_far.is_of_a_peer() && !failure.is_of_a_peer();
                if culprit.as_ref().is_none_or(better) {
                    culprit = Some(failure);
                }
            }
            Err(_) => break,
        }
    }
    match (culprit, first) {
        (Some(Failure::Error(error)), _) => Err(error),
        (Some(Failure::Panic(panic)), _) => resume_unwind(panic),
        (None, Some(done)) => Ok(done),
        (None, None) => unreachable!("every rank sends how it has ended"),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    fn world() -> Vec<World> {
        World::local(3, Duration::from_secs(60))
    }

    /// Sums over all ranks, as a step of training does.
    fn sum(world: &World) -> Result<f32, TrainError> {
        let ranks = world.communicator("test", &[0, 1, 2])?;
        let own = Tensor::<1>::full([1], world.rank() as f64, &Device::flex());
        Ok(ranks.all_reduce_sum(own).wait()?.into_data().as_slice().unwrap_or(&[0.0])[0])
    }

    #[test]
    fn all_ranks_work_together() {
        assert_eq!(run(world(), |rank| sum(&rank)).unwrap(), 3.0);
    }

    #[test]
    fn the_rank_that_fails_by_itself_is_told() {
        let error = run(world(), |rank| match rank.rank() {
            1 => Err(TrainError::File { path: "disk".into(), cause: "on fire".into() }),
            _ => sum(&rank),
        });
        assert_eq!(error.unwrap_err().to_string(), "disk: on fire");
    }

    #[test]
    fn a_panic_goes_on() {
        let panic = catch_unwind(|| {
            run(world(), |rank| match rank.rank() {
                2 => panic!("rank 2 panics"),
                _ => sum(&rank),
            })
        });
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"rank 2 panics"));
    }

    #[test]
    fn a_rank_that_waits_for_nobody_is_left_behind() {
        let (done, wait) = channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let error = run(world(), move |rank| match rank.rank() {
            0 => Err(TrainError::File { path: "disk".into(), cause: "full".into() }),
            1 => sum(&rank),
            _ => {
                // Until the test is over.
                let _ = wait.lock().map(|wait| wait.recv());
                Ok(0.0)
            }
        });
        assert_eq!(error.unwrap_err().to_string(), "disk: full");
        drop(done);
    }
}
