//! Seeded orders that need no state: numbers are hashes of what they are for.
//!
//! A generator is a key and a counter (Salmon et al., "Parallel random numbers: as easy as 1, 2,
//! 3", 2011), mixed by the finalizer of SplitMix64 (Steele et al., 2014), so that any draw can be
//! made without the draws before it.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a hash is for, so that equal numbers in different uses give unrelated hashes.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// The order of units in a block.
    Shuffle = 1,
    /// The source of a sample.
    Mix = 2,
}

fn mix64(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A hash of a few words, every one of which matters in its place.
pub(crate) fn hash(purpose: Purpose, words: &[u64]) -> u64 {
    let start = mix64(purpose as u64 ^ GOLDEN);
    words.iter().fold(start, |state, word| mix64(state.wrapping_add(GOLDEN) ^ mix64(*word)))
}

/// The draws of one key.
struct Draws {
    key: u64,
    counter: u64,
}

impl Draws {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        mix64(self.key.wrapping_add(self.counter.wrapping_mul(GOLDEN)))
    }

    /// A number below `bound`, each equally likely (Lemire, "Fast random integer generation in an
    /// interval", 2019).
    fn below(&mut self, bound: u64) -> u64 {
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }
}

/// In which order the units of one source are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    /// Seed of the run.
    pub(crate) seed: u64,
    /// Index of the source.
    pub(crate) source: u64,
    /// Units that are shuffled among each other; `None` keeps the order of the files.
    pub(crate) block: Option<usize>,
}

impl Order {
    /// The order of a block of `length` units in an epoch: unit `i` of the shuffled block is unit
    /// `permutation[i]` of the block in the file.
    pub(crate) fn permutation(&self, epoch: u64, block: u64, length: usize) -> Vec<usize> {
        let key = hash(Purpose::Shuffle, &[self.seed, self.source, epoch, block]);
        let mut draws = Draws { key, counter: 0 };
        let mut order: Vec<usize> = (0..length).collect();
        for last in (1..length).rev() {
            let other = draws.below(last as u64 + 1) as usize;
            order.swap(last, other);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_permutations_that_differ() {
        let order = Order { seed: 1, source: 0, block: Some(100) };
        let base = order.permutation(0, 0, 100);
        let mut sorted = base.clone();
        sorted.sort();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(base, order.permutation(0, 0, 100));
        assert_ne!(base, order.permutation(1, 0, 100));
        assert_ne!(base, order.permutation(0, 1, 100));
        assert_ne!(base, Order { seed: 2, ..order }.permutation(0, 0, 100));
        assert_ne!(base, Order { source: 1, ..order }.permutation(0, 0, 100));
        assert!(order.permutation(0, 0, 0).is_empty());
    }

    #[test]
    fn every_permutation_is_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        let trials = 60_000;
        for seed in 0..trials {
            let order = Order { seed, source: 0, block: Some(4) };
            *counts.entry(order.permutation(0, 0, 4)).or_insert(0_u32) += 1;
        }
        // 24 cells of 2500 expected; five standard deviations are 245.
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|count| count.abs_diff(2500) < 245), "{counts:?}");
    }

    /// A change of these numbers changes the data of every run that resumes.
    #[test]
    fn orders_are_pinned() {
        let order = Order { seed: 42, source: 0, block: Some(8) };
        assert_eq!(order.permutation(0, 0, 8), [6, 5, 0, 4, 3, 7, 2, 1]);
    }
}
