//! Which attention kernels CubeCL devices use.

use std::cell::Cell;

/// A set of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Tier {
    /// Matrix units where the device offers them for the dtype and the `head_dim`, else [`Tier::Plain`].
    #[default]
    Fastest,
    /// f32 arithmetic on ordinary units.
    Plain,
    /// The kernels for matrix units with ordinary units in their place, for f16 and bf16 with a
    /// `head_dim` that those kernels take: slow, but any device shows what they compute. `patience` is
    /// how much a score may exceed the reference of its row before the forward rescales, as a natural
    /// logarithm, at most 11 in f16.
    Emulated {
        /// See the variant.
        patience: f32,
    },
}

thread_local! {
    static TIER: Cell<Tier> = const { Cell::new(Tier::Fastest) };
}

/// Runs `work` with the kernels of `tier` for all attention that this thread starts on CubeCL devices,
/// forward and backward. For tests and comparisons; results agree within rounding. Not for builds with
/// the feature `tuned`, where operations may run after `work` has returned.
pub fn with_tier<T>(tier: Tier, work: impl FnOnce() -> T) -> T {
    struct Restore(Tier);
    impl Drop for Restore {
        fn drop(&mut self) {
            TIER.set(self.0);
        }
    }
    let _restore = Restore(TIER.replace(tier));
    work()
}

pub(super) fn current() -> Tier {
    TIER.get()
}
