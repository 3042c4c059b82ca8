//! Panics of libraries, turned into errors without their words on the terminal.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is expected.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` and gives `None` if it panics; the panic's message is not printed. `f` must run on this
/// thread, and leave nothing half done that is used afterwards.
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_message(f).ok()
}

/// As [`catch`], with the panic's message for an error.
pub(crate) fn catch_message<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !EXPECTED.try_with(Cell::get).unwrap_or(false) {
                previous(info);
            }
        }));
    });
    let before = EXPECTED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    EXPECTED.set(before);
    result.map_err(|panic| message(panic.as_ref()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_none() {
        assert_eq!(catch(|| 3), Some(3));
        assert_eq!(catch(|| catch(|| panic!("inner")).map_or(1, |()| 2)), Some(1));
        assert_eq!(catch(|| -> u8 { panic!("outer") }), None);
        assert_eq!(catch_message(|| -> u8 { panic!("plain") }), Err("plain".into()));
        assert_eq!(catch_message(|| -> u8 { panic!("with {}", 1) }), Err("with 1".into()));
        let odd = || -> u8 { panic::panic_any(1) };
        assert_eq!(catch_message(odd), Err("no message".into()));
        assert!(!EXPECTED.get());
    }
}
