//! The allocator of the process: mimalloc, told to keep the memory that a step frees.
//!
//! Every step frees the buffers that the next one allocates again. Left alone, mimalloc gives pages
//! back to the system after a second without use, and the system clears each page before it returns:
//! up to a quarter of the time of a step. Training has no other use for this memory, so it is kept.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

// `mi_option_e` of mimalloc.h, version 3; the crate has no name for it.
const PURGE_DELAY: mi_option_t = 15;

/// Never gives freed memory back to the system, unless the environment variable
/// `MIMALLOC_PURGE_DELAY` says after how many milliseconds to.
pub fn keep_freed_memory() {
    const NEVER: std::ffi::c_long = -1;
    // SAFETY: the option exists, and mimalloc reads it whenever it frees pages. What the environment
    // has set is left as it is.
    unsafe { mi_option_set_default(PURGE_DELAY, NEVER) }
}

#[cfg(test)]
mod tests {
    use libmimalloc_sys::{mi_option_get, mi_version};

    use super::*;

    #[test]
    fn the_option_is_that_of_the_bundled_mimalloc() {
        // SAFETY: reading the version or an option has no effect.
        let (version, purge_delay) = unsafe { (mi_version(), mi_option_get(PURGE_DELAY)) };
        // No other option of version 3 has this value before it is set.
        assert_eq!((version / 10_000, purge_delay), (3, 1000));
        keep_freed_memory();
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, -1);
    }
}
