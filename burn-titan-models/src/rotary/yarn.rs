//! YaRN: RoPE for contexts longer than those of pre-training.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::config::above_0;

/// YaRN ([Peng et al., 2023](https://arxiv.org/abs/2309.00071)), with the magnitudes of DeepSeek-V2 and V3.
///
/// With `c(b) = width ln(original / (2 pi b)) / (2 ln theta)`, the pair that turns `b` times over the original context:
/// pairs below `c(beta_fast)` are kept, those above `c(beta_slow)` are slowed down by `factor`, those between are
/// interpolated. With `m(a) = 0.1 a ln(factor) + 1`, what is rotated is multiplied by `m(mscale) / m(mscale_all_dim)`,
/// and scores by `m(mscale_all_dim)^2`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yarn {
    /// How much longer the context is; divisor of the low frequencies.
    pub factor: f64,
    /// Turns over the original context above which a frequency is kept.
    pub beta_fast: f64,
    /// Turns over the original context below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Magnitude of what is rotated, before that of the scores is taken out.
    pub mscale: f64,
    /// Magnitude of queries and keys, which the scores get.
    pub mscale_all_dim: f64,
    /// Context of pre-training, in tokens.
    pub original_max_position_embeddings: usize,
}

impl Yarn {
    /// The factor on what is rotated.
    pub fn rotation_factor(&self) -> f64 {
        self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
    }

    /// The factor on the scores.
    pub fn score_factor(&self) -> f64 {
        self.magnitude(self.mscale_all_dim).powi(2)
    }

    fn magnitude(&self, scale: f64) -> f64 {
        0.1 * scale * self.factor.ln() + 1.0
    }

    /// The frequencies, stretched; `theta` is their base.
    pub(super) fn scaled(&self, frequencies: &[f64], theta: f64) -> Vec<f64> {
        let width = 2 * frequencies.len();
        let original = self.original_max_position_embeddings as f64;
        let pair =
            |turns: f64| width as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let low = pair(self.beta_fast).floor().max(0.0);
        let high = pair(self.beta_slow).ceil().min(width as f64 - 1.0);
        // As published: no division by 0 where both are the same.
        let span = if low == high { 0.001 } else { high - low };
        let stretched = |(i, frequency): (usize, &f64)| {
            let slow = ((i as f64 - low) / span).clamp(0.0, 1.0);
            frequency / self.factor * slow + frequency * (1.0 - slow)
        };
        frequencies.iter().enumerate().map(stretched).collect()
    }

    /// What is wrong with the numbers, and what was expected.
    pub fn problem(&self) -> Option<String> {
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Some(format!("has factor {}: expected a number of at least 1", self.factor));
        }
        if !(above_0(self.beta_fast) && above_0(self.beta_slow)) {
            return Some("has a beta that is not a number above 0".into());
        }
        if self.beta_slow >= self.beta_fast {
            return Some(format!(
                "has beta_slow {}: expected less than beta_fast ({})",
                self.beta_slow, self.beta_fast
            ));
        }
        let magnitudes = [self.mscale, self.mscale_all_dim];
        if magnitudes.iter().any(|scale| !(scale.is_finite() && *scale >= 0.0)) {
            return Some("has an mscale that is not a number of at least 0".into());
        }
        (self.original_max_position_embeddings == 0)
            .then(|| "has original_max_position_embeddings 0: expected at least 1".into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::InterleavedRotary;
    use super::*;

    /// DeepSeek-V3's.
    const PUBLISHED: Yarn = Yarn {
        factor: 40.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: 1.0,
        mscale_all_dim: 1.0,
        original_max_position_embeddings: 4096,
    };

    /// Pair 10.5 of 32 turns 32 times over 4096 tokens, and pair 22.5 once.
    #[test]
    fn fast_pairs_are_kept_and_slow_ones_stretched() {
        let rotary = |yarn| InterleavedRotary { width: 64, theta: 1e4, yarn };
        let (plain, found) = (rotary(None).frequencies(), rotary(Some(PUBLISHED)).frequencies());
        assert_eq!(found.len(), 32);
        let ratios: Vec<f64> = plain.iter().zip(&found).map(|(a, b)| a / b).collect();
        assert!(ratios[..=10].iter().all(|ratio| *ratio == 1.0), "{ratios:?}");
        assert!(ratios[23..].iter().all(|ratio| (ratio - 40.0).abs() < 1e-9), "{ratios:?}");
        // Between 10 and 23 the share of the slow frequency grows evenly.
        for (i, ratio) in ratios.iter().enumerate().take(23).skip(11) {
            let share = (i as f64 - 10.0) / 13.0;
            assert!((1.0 / ratio - (1.0 - share + share / 40.0)).abs() < 1e-12, "{i}: {ratio}");
        }
    }

    #[test]
    fn magnitudes_are_the_published_ones() {
        // (0.1 ln 40 + 1)^2
        assert!((PUBLISHED.score_factor() - 1.873_854_2).abs() < 1e-6);
        assert_eq!(PUBLISHED.rotation_factor(), 1.0);
        let all_in_rotation = Yarn { mscale_all_dim: 0.0, ..PUBLISHED };
        assert_eq!(all_in_rotation.score_factor(), 1.0);
        assert!((all_in_rotation.rotation_factor().powi(2) - 1.873_854_2).abs() < 1e-6);
    }

    #[test]
    fn broken_numbers_are_named() {
        type Change = fn(&mut Yarn);
        let cases: [(&str, Change); 5] = [
            ("has factor 0.5: expected a number of at least 1", |y| y.factor = 0.5),
            ("has a beta that is not a number above 0", |y| y.beta_slow = f64::NAN),
            ("has beta_slow 32: expected less than beta_fast (32)", |y| y.beta_slow = 32.0),
            ("has an mscale that is not a number of at least 0", |y| y.mscale = -1.0),
            ("has original_max_position_embeddings 0: expected at least 1", |y| {
                y.original_max_position_embeddings = 0;
            }),
        ];
        assert_eq!(PUBLISHED.problem(), None);
        for (message, change) in cases {
            let mut yarn = PUBLISHED;
            change(&mut yarn);
            assert_eq!(yarn.problem().unwrap(), message);
        }
    }
}
