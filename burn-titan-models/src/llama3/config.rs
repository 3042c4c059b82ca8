//! The shape of a Llama 3 model, and the sizes that were published.

use burn_titan_kernels::attention::MAX_HEAD_DIM;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most transformer blocks; each has modules of its own, which a check of the config builds.
const MAX_LAYERS: usize = 10_000;

/// The shape of a Llama 3 model.
///
/// The sizes are those of [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783), table 3, and
/// of the model cards of Llama 3.1 and 3.2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Query heads of a block.
    pub n_heads: usize,
    /// Key and value heads of a block; each serves `n_heads / n_kv_heads` query heads
    /// ([GQA](https://arxiv.org/abs/2305.13245)).
    pub n_kv_heads: usize,
    /// Width of one head; even, for RoPE turns pairs.
    pub head_dim: usize,
    /// Width of the feed-forward middle (SwiGLU).
    pub ffn_dim: usize,
    /// Rows of the embedding, at least the tokenizer's tokens.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the RoPE frequencies ([RoFormer](https://arxiv.org/abs/2104.09864)).
    pub rope_theta: f64,
    /// Stretching of the RoPE frequencies for contexts longer than those of pre-training.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head uses the embedding's weights.
    pub tie_embeddings: bool,
    /// Longest sequence the model is meant for, in tokens.
    pub max_seq_len: usize,
}

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

/// A field of [`LlamaConfig`] that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Name of the field.
    pub field: &'static str,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl LlamaConfig {
    /// Names of the sizes that [`flavor`](Self::flavor) knows.
    pub const FLAVORS: [&str; 6] = ["debug", "1b", "3b", "8b", "70b", "405b"];

    /// The size of that name. `debug` is the model of torchtitan's tests; the others are Llama 3.1
    /// (8b, 70b, 405b) and Llama 3.2 (1b, 3b).
    pub fn flavor(name: &str) -> Option<Self> {
        let config = match name {
            "debug" => {
                let published = Self::published(256, 6, 16, 16, 768);
                Self { head_dim: 16, vocab_size: 2048, max_seq_len: 2048, ..published }
            }
            "1b" => Self { head_dim: 64, ..Self::published(2048, 16, 32, 8, 8192).of_llama_3_2() },
            "3b" => Self::published(3072, 28, 24, 8, 8192).of_llama_3_2(),
            "8b" => Self::published(4096, 32, 32, 8, 14_336),
            "70b" => Self::published(8192, 80, 64, 8, 28_672),
            "405b" => Self::published(16_384, 126, 128, 8, 53_248),
            _ => return None,
        };
        Some(config)
    }

    /// What the published sizes of Llama 3.1 share.
    fn published(
        dim: usize,
        n_layers: usize,
        n_heads: usize,
        n_kv_heads: usize,
        ffn_dim: usize,
    ) -> Self {
        Self {
            dim,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim: 128,
            ffn_dim,
            vocab_size: 128_256,
            norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: Some(RopeScaling {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192,
            }),
            tie_embeddings: false,
            max_seq_len: 131_072,
        }
    }

    /// The two models of Llama 3.2 tie their embeddings and stretch RoPE further.
    fn of_llama_3_2(mut self) -> Self {
        self.tie_embeddings = true;
        if let Some(scaling) = &mut self.rope_scaling {
            scaling.factor = 32.0;
        }
        self
    }

    /// As JSON, every field written out.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    /// From JSON.
    ///
    /// # Errors
    /// A field that is missing, unknown or of the wrong type.
    pub fn deserialize_value(value: &Value) -> Result<Self, serde_json::Error> {
        Self::deserialize(value)
    }

    /// All parameters; tied weights count once. Saturates where a size is absurd, which
    /// [`validate`](Self::validate) reports.
    pub fn parameter_count(&self) -> u64 {
        self.checked_parameter_count().unwrap_or(u64::MAX)
    }

    fn checked_parameter_count(&self) -> Option<u64> {
        let [dim, layers, heads, kv_heads, head_dim, ffn, vocab] = [
            self.dim,
            self.n_layers,
            self.n_heads,
            self.n_kv_heads,
            self.head_dim,
            self.ffn_dim,
            self.vocab_size,
        ]
        .map(|size| size as u64);
        let product = |factors: [u64; 3]| {
            factors.iter().try_fold(1u64, |product, factor| product.checked_mul(*factor))
        };
        let sum = |terms: &[Option<u64>]| {
            terms.iter().try_fold(0u64, |sum, term| sum.checked_add((*term)?))
        };
        // wq and wo, wk and wv, w1 to w3, two norms.
        let block = sum(&[
            product([dim, heads, head_dim])?.checked_mul(2),
            product([dim, kv_heads, head_dim])?.checked_mul(2),
            product([3, dim, ffn]),
            product([1, 2, dim]),
        ])?;
        let embeddings = product([if self.tie_embeddings { 1 } else { 2 }, vocab, dim]);
        sum(&[block.checked_mul(layers), embeddings, Some(dim)])
    }

    /// Everything that is wrong with the shape; empty where a model can be built.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut report = |field, message: String| problems.push(ConfigProblem { field, message });
        for (field, size) in [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("ffn_dim", self.ffn_dim),
            ("vocab_size", self.vocab_size),
            ("max_seq_len", self.max_seq_len),
        ] {
            if size == 0 {
                report(field, "is 0: expected at least 1".into());
            }
        }
        if self.n_kv_heads != 0 && !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let heads = self.n_heads;
            let message = format!(
                "is {}: expected a divisor of n_heads ({heads}), so that each serves equally many",
                self.n_kv_heads
            );
            report("n_kv_heads", message);
        }
        if !self.head_dim.is_multiple_of(2) {
            let message = format!("is {}: expected an even number, for RoPE", self.head_dim);
            report("head_dim", message);
        }
        for (field, size, most) in [
            ("n_layers", self.n_layers, MAX_LAYERS),
            // Token ids are 32-bit integers on devices.
            ("vocab_size", self.vocab_size, i32::MAX as usize),
            // What the fused attention takes on every device.
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
        ] {
            if size > most {
                report(field, format!("is {size}: expected at most {most}"));
            }
        }
        let above_zero = |value: f64| value.is_finite() && value > 0.0;
        for (field, value) in [("norm_eps", self.norm_eps), ("rope_theta", self.rope_theta)] {
            if !above_zero(value) {
                report(field, format!("is {value}: expected a number above 0"));
            }
        }
        // It is added in single precision, where a smaller number is 0.
        let eps = self.norm_eps as f32;
        if above_zero(self.norm_eps) && !(eps.is_finite() && eps >= f32::MIN_POSITIVE) {
            let message = format!(
                "is {:e}: expected a number from {:e} to {:e} (single precision)",
                self.norm_eps,
                f32::MIN_POSITIVE,
                f32::MAX
            );
            report("norm_eps", message);
        }
        if let Some(message) = self.rope_scaling.and_then(|scaling| scaling.problem()) {
            report("rope_scaling", message);
        }
        // Bytes of an f32 copy must be countable, so that no later product overflows.
        let bytes = self.checked_parameter_count().and_then(|count| count.checked_mul(16));
        if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) {
            report("dim", "and the other sizes give more parameters than can be counted".into());
        }
        problems
    }
}

impl RopeScaling {
    fn problem(&self) -> Option<String> {
        let above_zero = |value: f64| value.is_finite() && value > 0.0;
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Some(format!("has factor {}: expected a number of at least 1", self.factor));
        }
        if !(above_zero(self.low_freq_factor) && above_zero(self.high_freq_factor)) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_the_published_counts() {
        let counts = [
            6_163_712,
            1_235_814_400,
            3_212_749_824,
            8_030_261_248,
            70_553_706_496,
            405_853_388_800,
        ];
        for (name, count) in LlamaConfig::FLAVORS.into_iter().zip(counts) {
            let config = LlamaConfig::flavor(name).unwrap();
            assert_eq!(config.parameter_count(), count, "{name}");
            assert_eq!(config.validate(), [], "{name}");
        }
        assert_eq!(LlamaConfig::flavor("9b"), None);
    }

    #[test]
    fn every_broken_size_is_named() {
        type Change = fn(&mut LlamaConfig);
        let scaling = |config: &mut LlamaConfig| config.rope_scaling.unwrap();
        let cases: [(&str, &str, Change); 17] = [
            ("dim", "is 0: expected at least 1", |c| c.dim = 0),
            ("n_layers", "is 0: expected at least 1", |c| c.n_layers = 0),
            ("n_kv_heads", "is 0: expected at least 1", |c| c.n_kv_heads = 0),
            (
                "n_kv_heads",
                "is 3: expected a divisor of n_heads (16), so that each serves equally many",
                |c| c.n_kv_heads = 3,
            ),
            (
                "n_kv_heads",
                "is 32: expected a divisor of n_heads (16), so that each serves equally many",
                |c| c.n_kv_heads = 32,
            ),
            ("head_dim", "is 15: expected an even number, for RoPE", |c| c.head_dim = 15),
            ("vocab_size", "is 0: expected at least 1", |c| c.vocab_size = 0),
            ("max_seq_len", "is 0: expected at least 1", |c| c.max_seq_len = 0),
            ("n_layers", "is 10001: expected at most 10000", |c| c.n_layers = 10_001),
            ("head_dim", "is 258: expected at most 256", |c| c.head_dim = 258),
            ("vocab_size", "is 2147483648: expected at most 2147483647", |c| {
                c.vocab_size = 1 << 31
            }),
            ("norm_eps", "is NaN: expected a number above 0", |c| c.norm_eps = f64::NAN),
            (
                "norm_eps",
                "is 1e-50: expected a number from 1.1754944e-38 to 3.4028235e38 (single precision)",
                |c| c.norm_eps = 1e-50,
            ),
            (
                "norm_eps",
                "is 1e39: expected a number from 1.1754944e-38 to 3.4028235e38 (single precision)",
                |c| c.norm_eps = 1e39,
            ),
            ("rope_theta", "is 0: expected a number above 0", |c| c.rope_theta = 0.0),
            ("dim", "and the other sizes give more parameters than can be counted", |c| {
                c.ffn_dim = usize::MAX / 2;
            }),
            (
                "rope_scaling",
                "has low_freq_factor 4: expected less than high_freq_factor (4)",
                |c| c.rope_scaling.as_mut().unwrap().low_freq_factor = 4.0,
            ),
        ];
        for (field, message, change) in cases {
            let mut config = LlamaConfig::flavor("debug").unwrap();
            change(&mut config);
            let expected = ConfigProblem { field, message: message.into() };
            assert_eq!(config.validate(), [expected]);
        }
        let mut config = LlamaConfig::flavor("debug").unwrap();
        let scaling = scaling(&mut config);
        config.rope_scaling = Some(RopeScaling { factor: 0.5, ..scaling });
        assert_eq!(config.validate()[0].message, "has factor 0.5: expected a number of at least 1");
        config.dim = usize::MAX;
        assert_eq!(config.parameter_count(), u64::MAX);
    }
}
