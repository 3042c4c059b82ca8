//! Which source a sample comes from.

use super::error::DataError;
use super::shuffle::{Purpose, hash};

/// Draws the source of each sample by the sources' weights. The source of sample `n` is a function
/// of (seed, n) alone.
pub(crate) struct Mixture {
    seed: u64,
    /// Ends of the sources' intervals in 0 to 1.
    ends: Vec<f64>,
    /// The last source with a share, which takes what rounding leaves.
    last: usize,
}

impl Mixture {
    /// A mixture by these weights, one for each source, in any unit.
    ///
    /// # Errors
    /// A weight that is negative or not finite, or only zeros.
    pub(crate) fn new(seed: u64, weights: &[f64]) -> Result<Self, DataError> {
        for (index, &weight) in weights.iter().enumerate() {
            if !weight.is_finite() || weight < 0.0 {
                return Err(DataError::Weight { index, weight });
            }
        }
        // Scaled by the largest first, so that the sum cannot overflow.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let total: f64 = weights.iter().map(|weight| weight / largest).sum();
        let last = weights.iter().rposition(|&weight| weight > 0.0).ok_or(DataError::NoWeight)?;
        let mut end = 0.0;
        let ends = weights.iter().map(|weight| {
            end += weight / largest / total;
            end
        });
        Ok(Self { seed, ends: ends.collect(), last })
    }

    /// The source of global sample `sample`.
    pub(crate) fn source(&self, sample: u64) -> usize {
        let uniform =
            (hash(Purpose::Mix, &[self.seed, sample]) >> 11) as f64 / (1_u64 << 53) as f64;
        self.ends.partition_point(|&end| end <= uniform).min(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_weights() {
        let mixture = Mixture::new(7, &[3.0, 0.0, 1.0, 6.0, 0.0]).unwrap();
        let mut counts = [0_u32; 5];
        for sample in 0..100_000 {
            counts[mixture.source(sample)] += 1;
        }
        assert_eq!((counts[1], counts[4]), (0, 0));
        // Five standard deviations are at most 775.
        for (index, expected) in [(0, 30_000), (2, 10_000), (3, 60_000)] {
            assert!(counts[index].abs_diff(expected) < 775, "{counts:?}");
        }
    }

    #[test]
    fn seeds_give_other_mixtures() {
        let draw = |seed| {
            let mixture = Mixture::new(seed, &[1.0, 1.0]).unwrap();
            (0..64).map(|sample| mixture.source(sample)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let huge = Mixture::new(0, &[f64::MAX, f64::MAX]).unwrap();
        assert!((0..64).any(|n| huge.source(n) == 0) && (0..64).any(|n| huge.source(n) == 1));
    }

    #[test]
    fn refuses_weights_that_are_no_shares() {
        let message = |weights: &[f64]| Mixture::new(0, weights).err().unwrap().to_string();
        assert_eq!(
            message(&[1.0, -0.5]),
            "data.train[1].weight: -0.5: expected a finite number that is not negative"
        );
        assert_eq!(
            message(&[f64::NAN]),
            "data.train[0].weight: NaN: expected a finite number that is not negative"
        );
        assert_eq!(
            message(&[0.0, 0.0]),
            "data.train: all weights are 0: give at least one source a weight above 0"
        );
    }
}
