//! A device that has no memory left: CubeCL panics where the result of the operation is used, maybe much later.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use burn_titan_kernels::device::memory;

use super::{TrainError, open_device_of_rank};
use crate::config::{ComputeDtype, Config, DeviceKind};

/// What CubeCL's errors say before the bytes that were asked for.
const SIGNS: [&str; 3] = [
    "out of device memory allocating ",
    "can't allocate buffer of size: ",
    "an out-of-memory error happened",
];

/// Runs the training of a config as a rank of a host. A panic for want of memory on the device becomes an error; the panic's own
/// words are on standard error by then. Any other goes on.
///
/// # Errors
/// As `training`; or [`TrainError::OutOfMemory`].
pub(super) fn explained<T>(
    config: &Config,
    local_rank: usize,
    training: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    let kind = config.training.device;
    if kind == DeviceKind::Flex {
        return training();
    }
    catch_unwind(AssertUnwindSafe(training)).unwrap_or_else(|panic| {
        let Some(asked) = asked(panic.as_ref()) else { resume_unwind(panic) };
        let device = open_device_of_rank(kind, ComputeDtype::Float32, local_rank).ok();
        let device_memory = device.and_then(|(device, _)| memory(&device));
        Err(TrainError::OutOfMemory { device: kind, asked, memory: device_memory })
    })
}

/// The bytes that a panic for want of memory names, if it is one; 0 where it names none.
fn asked(panic: &(dyn Any + Send)) -> Option<u64> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied())?;
    let lower = text.to_lowercase();
    let after = SIGNS.iter().find_map(|sign| lower.split_once(sign).map(|(_, after)| after))?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    Some(digits.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_in(text: &str) -> Option<u64> {
        asked(&text.to_owned())
    }

    #[test]
    fn the_bytes_are_read_from_the_panic() {
        let read = "Error while reading data\nCaused by:\n  out of device memory allocating 4096 bytes\nNo";
        assert_eq!(asked_in(read), Some(4096));
        assert_eq!(asked_in("can't allocate buffer of size: 77\n"), Some(77));
        assert_eq!(asked_in("An out-of-memory error happened during launch\nCaused by:"), Some(0));
        assert_eq!(asked_in("index out of bounds"), None);
        assert_eq!(asked(&1_u8), None);
    }
}
