//! Llama 3.1's stretching of the frequencies.

use serde::{Deserialize, Serialize};

use crate::config::above_0;

/// RoPE scaling of Llama 3.1: frequencies whose wavelength is longer than the original context (over
/// `low_freq_factor`) are divided by `factor`, short ones are kept, those between are interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context of pre-training, in tokens.
    pub original_max_position_embeddings: usize,
}

impl RopeScaling {
    /// What is wrong with the numbers, and what was expected.
    pub fn problem(&self) -> Option<String> {
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Some(format!("has factor {}: expected a number of at least 1", self.factor));
        }
        if !(above_0(self.low_freq_factor) && above_0(self.high_freq_factor)) {
            return Some("has a frequency factor that is not a number above 0".into());
        }
        if self.low_freq_factor >= self.high_freq_factor {
            return Some(format!(
                "has low_freq_factor {}: expected less than high_freq_factor ({})",
                self.low_freq_factor, self.high_freq_factor
            ));
        }
        (self.original_max_position_embeddings == 0)
            .then(|| "has original_max_position_embeddings 0: expected at least 1".into())
    }

    /// Long wavelengths are stretched, short ones kept, those between interpolated.
    pub(super) fn scaled(&self, frequency: f64) -> f64 {
        let old = self.original_max_position_embeddings as f64;
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        if wavelength < old / high {
            frequency
        } else if wavelength > old / low {
            frequency / self.factor
        } else {
            let smooth = (old / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}
