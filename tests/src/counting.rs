//! An allocator that counts, for tests of what is held in memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, counting bytes in use and their peak.
pub struct Counting {
    in_use: AtomicUsize,
    peak: AtomicUsize,
}

impl Counting {
    /// With nothing in use.
    #[expect(clippy::new_without_default, reason = "it is made as a static")]
    pub const fn new() -> Self {
        Self { in_use: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// Bytes in use now.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Relaxed)
    }

    /// Most bytes that were in use at once, since the peak was last forgotten.
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// Begins a new peak.
    pub fn forget_peak(&self) {
        self.peak.store(self.in_use(), Relaxed);
    }
}

// SAFETY: every call goes to `System` unchanged; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = self.in_use.fetch_add(layout.size(), Relaxed) + layout.size();
        self.peak.fetch_max(in_use, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.in_use.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
