//! Work of one rank whose peers are other processes: it ends with the world, whichever fails first.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use burn_titan_core::trainer::TrainError;
use burn_titan_parallel::World;

/// How long the work may take to notice by itself that the world has failed. It knows more of it than the world.
const GRACE: Duration = Duration::from_millis(1500);

/// Does the work of a rank, and leaves the world: in good order, or so that all others end too.
///
/// Where the world fails and the work does not notice within [`GRACE`], because it waits for none of its
/// peers, this prints the world's error and ends the process.
///
/// # Errors
/// As the work; or if a rank is lost, or late, while all leave.
pub fn run<T>(
    world: World,
    work: impl FnOnce(World) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    let over = Over::default();
    let watched = over.0.clone();
    world.on_failure(Box::new(move |error| {
        std::thread::sleep(GRACE);
        let over = watched.lock().unwrap_or_else(PoisonError::into_inner);
        if !*over {
            let error = TrainError::Communication(error.clone());
            eprintln!("error: {error}");
            exit_now(error.exit_code());
        }
    }));
    let result = work(world.clone()).and_then(|done| {
        world.close()?;
        Ok(done)
    });
    if let Err(error) = &result {
        world.abort(&error.to_string());
    }
    result
}

/// Says, once dropped, also by a panic, that the process ends by itself. Where it is being ended, that waits.
#[derive(Default)]
struct Over(Arc<Mutex<bool>>);

impl Drop for Over {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// Ends the process without waiting for anything: devices may wait for their threads at an orderly end.
fn exit_now(code: u8) -> ! {
    #[cfg(unix)]
    // SAFETY: takes no pointers, and does not return. Standard error has no buffer that would be lost.
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::{Command, Output, Stdio};
    use std::time::Instant;

    use burn::tensor::{Device, Tensor};
    use burn_titan_parallel::WorldOptions;
    use burn_titan_parallel::launch::local::free_port;
    use burn_titan_parallel::launch::{Flags, Place, Variables, read};

    use super::*;

    /// Says what the ranks of a test do.
    const CASE: &str = "BURN_TITAN_TEST_CASE";

    /// Where this process was started as a rank, it becomes one.
    #[test]
    fn as_a_rank() {
        let Ok(case) = std::env::var(CASE) else { return };
        let Ok(Place::Rank(launch)) = read(&Flags::default(), &Variables::of_process()) else {
            panic!("no rank")
        };
        // The other rank may have failed already when this one has joined.
        let joined = World::join(&launch, &WorldOptions::default()).map_err(TrainError::from);
        let done = joined.and_then(|world| run(world, |world| work(&world, &case)));
        if let Err(error) = done {
            eprintln!("error: {error}");
            exit_now(error.exit_code());
        }
    }

    /// What the ranks of a case do.
    fn work(world: &World, case: &str) -> Result<(), TrainError> {
        match (case, world.rank()) {
            ("end", _) => {}
            ("exit", 1) => std::process::exit(3),
            ("panic", 1) => panic!("rank 1 panics"),
            ("fail", 1) => {
                return Err(TrainError::File { path: "disk".into(), cause: "full".into() });
            }
            ("fail", _) => {
                let ranks = world.communicator("test", &[0, 1])?;
                let one = Tensor::<1>::ones([1], &Device::flex());
                ranks.all_reduce_sum(one).wait()?;
            }
            // Waits for nobody.
            _ => std::thread::sleep(Duration::from_secs(60)),
        }
        Ok(())
    }

    /// How two ranks end, and after how many seconds rank 0 did.
    fn ranks(case: &str) -> ([Output; 2], f64) {
        let port = free_port().unwrap();
        let start = |rank: &str| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "rank::tests::as_a_rank", "--nocapture"])
                .env(CASE, case)
                .env("BURN_TITAN_TOKEN", "secret")
                .env("BURN_TITAN_RANK", rank)
                .env("BURN_TITAN_LOCAL_RANK", rank)
                .env("BURN_TITAN_WORLD_SIZE", "2")
                .env("BURN_TITAN_LOCAL_SIZE", "2")
                .env("BURN_TITAN_RENDEZVOUS", format!("127.0.0.1:{port}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let [zero, one] = ["0", "1"].map(start);
        let one = one.wait_with_output().unwrap();
        let since = Instant::now();
        let zero = zero.wait_with_output().unwrap();
        ([zero, one], since.elapsed().as_secs_f64())
    }

    fn errors(rank: &Output) -> Vec<String> {
        let text = String::from_utf8_lossy(&rank.stderr);
        text.lines().filter(|line| line.starts_with("error: ")).map(String::from).collect()
    }

    #[test]
    fn ranks_end_together() {
        let (ranks, _) = ranks("end");
        assert!(ranks.iter().all(|rank| rank.status.code() == Some(0)), "{ranks:?}");
    }

    #[test]
    fn a_rank_that_waits_for_nobody_ends_with_the_world() {
        let ([zero, one], seconds) = ranks("exit");
        assert_eq!((zero.status.code(), one.status.code()), (Some(138), Some(3)));
        let errors = errors(&zero);
        assert!(errors.len() == 1 && errors[0].starts_with("error: rank 1 on "), "{errors:?}");
        // Two seconds, and some for a busy machine; its work takes a minute.
        assert!(seconds < 20.0, "{seconds} s");
    }

    #[test]
    fn a_rank_that_panics_is_named() {
        let ([zero, one], _) = ranks("panic");
        assert_eq!((zero.status.code(), one.status.code()), (Some(138), Some(101)));
        let errors = errors(&zero);
        assert!(errors.len() == 1 && errors[0].contains(" is lost (it panicked"), "{errors:?}");
    }

    #[test]
    fn a_rank_that_fails_is_named_with_its_error() {
        let ([zero, one], _) = ranks("fail");
        assert_eq!((zero.status.code(), one.status.code()), (Some(138), Some(2)));
        assert_eq!(errors(&one), ["error: disk: full"]);
        let errors = errors(&zero);
        assert!(errors.len() == 1 && errors[0].contains(" is lost (disk: full"), "{errors:?}");
    }
}
