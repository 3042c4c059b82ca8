//! Counting what a module's operations hold, one after the other.

mod attention;
mod site;

pub use attention::AttentionWidths;
use burn_titan_core::model::Workload;

/// Bytes that are alive while operations run, relative to where it began.
///
/// Every line of a forward or a backward is a line here: what an operation takes while it runs, what it leaves, and
/// what nobody needs after it. Sizes are in elements of the compute dtype, unless they are said to be bytes.
pub struct Tape {
    workload: Workload,
    live: i64,
    most: i64,
}

impl Tape {
    /// Nothing is held.
    pub fn new(workload: &Workload) -> Self {
        Self { workload: *workload, live: 0, most: 0 }
    }

    /// What is worked on.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Holds elements from now on.
    pub fn hold(&mut self, elements: usize) {
        self.hold_bytes(self.workload.bytes(elements));
    }

    /// Holds bytes from now on.
    pub fn hold_bytes(&mut self, bytes: u64) {
        self.pass_bytes(bytes);
        self.live += bytes as i64;
    }

    /// Elements that were held are no longer.
    pub fn free(&mut self, elements: usize) {
        self.free_bytes(self.workload.bytes(elements));
    }

    /// Bytes that were held are no longer.
    pub fn free_bytes(&mut self, bytes: u64) {
        self.live -= bytes as i64;
    }

    /// Bytes are held for a moment.
    pub fn pass_bytes(&mut self, bytes: u64) {
        self.most = self.most.max(self.live + bytes as i64);
    }

    /// A matrix product `[m, k] [k, n]`, whose result is held.
    pub fn product(&mut self, m: usize, k: usize, n: usize) {
        let result = self.workload.bytes(m * n);
        self.pass_bytes(match (self.workload.native, self.is_single()) {
            (false, _) => result,
            // Burn clears the result's memory in a copy of it.
            (true, true) => 2 * result,
            (true, false) => single(m * k + k * n + 2 * m * n),
        });
        self.hold(m * n);
    }

    /// An operation of ours that reads and writes so many elements; the results are held.
    pub fn kernel<const N: usize>(&mut self, reads: usize, writes: [usize; N]) {
        let all = writes.iter().sum();
        if self.copies() {
            // All is read and made in f32; then one result after the other is rounded, and its copy goes.
            let first = self.workload.bytes(writes.first().copied().unwrap_or(0));
            self.pass_bytes(single(reads + all) + first);
        }
        self.hold(all);
    }

    /// Bytes of `elements` in f32 where the native code makes copies of them.
    pub fn copy(&self, elements: usize) -> u64 {
        if self.copies() { single(elements) } else { 0 }
    }

    /// Bytes that are held now.
    pub fn live(&self) -> u64 {
        self.live.max(0) as u64
    }

    /// Most bytes that were held at once.
    pub fn most(&self) -> u64 {
        self.most as u64
    }

    /// Whether the compute dtype is f32.
    pub(crate) fn is_single(&self) -> bool {
        self.workload.compute.size() == 4
    }

    fn copies(&self) -> bool {
        self.workload.native && !self.is_single()
    }
}

/// Bytes of elements in f32.
pub fn single(elements: usize) -> u64 {
    4 * elements as u64
}
