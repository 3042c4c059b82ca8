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
    let over = Arc::new(Mutex::new(false));
    let watched = over.clone();
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
    // Where the other thread is about to end the process, this waits for it.
    *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
    result
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
