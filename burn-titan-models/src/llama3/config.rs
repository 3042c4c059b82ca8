//! The shape of a Llama 3 model, and the sizes that were published.

use burn_titan_kernels::attention::MAX_HEAD_DIM;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{ConfigProblem, MAX_LAYERS, MAX_VOCABULARY, ModelConfig, Rules, elements};
pub use crate::rotary::RopeScaling;

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

impl ModelConfig for LlamaConfig {
    const FAMILY: &'static str = "llama3";
    const FLAVORS: &'static [&'static str] = &["debug", "1b", "3b", "8b", "70b", "405b"];

    /// `debug` is the model of torchtitan's tests; the others are Llama 3.1 (8b, 70b, 405b) and Llama 3.2 (1b, 3b).
    fn flavor(name: &str) -> Option<Self> {
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

    fn validate(&self) -> Vec<ConfigProblem> {
        let mut rules = Rules::default();
        rules.at_least_1(&[
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("ffn_dim", self.ffn_dim),
            ("vocab_size", self.vocab_size),
            ("max_seq_len", self.max_seq_len),
        ]);
        rules.grouped_heads(self.n_heads, self.n_kv_heads);
        rules.pairs("head_dim", self.head_dim);
        rules.at_most(&[
            ("n_layers", self.n_layers, MAX_LAYERS),
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            // What the fused attention takes on every device.
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
        ]);
        rules.above_0(&[("norm_eps", self.norm_eps), ("rope_theta", self.rope_theta)]);
        rules.single_precision("norm_eps", self.norm_eps);
        if let Some(message) = self.rope_scaling.and_then(|scaling| scaling.problem()) {
            rules.report("rope_scaling", message);
        }
        rules.countable(self.checked_parameter_count());
        rules.problems
    }
}

impl LlamaConfig {
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

    /// From JSON.
    ///
    /// # Errors
    /// A field that is missing, unknown or of the wrong type.
    pub fn deserialize_value(value: &Value) -> Result<Self, serde_json::Error> {
        Self::deserialize(value)
    }

    /// All parameters; tied weights count once. Saturates where a size is absurd, which
    /// [`validate`](ModelConfig::validate) reports.
    pub fn parameter_count(&self) -> u64 {
        self.checked_parameter_count().unwrap_or(u64::MAX)
    }

    fn checked_parameter_count(&self) -> Option<u64> {
        let Self { dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, .. } = *self;
        let block = elements(&[
            &[2, dim, n_heads, head_dim],    // wq, wo
            &[2, dim, n_kv_heads, head_dim], // wk, wv
            &[3, dim, ffn_dim],
            &[2, dim], // norms
        ])?;
        let matrices = if self.tie_embeddings { 1 } else { 2 };
        let outer = elements(&[&[matrices, vocab_size, dim], &[dim]])?;
        block.checked_mul(self.n_layers as u64)?.checked_add(outer)
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
        for (name, count) in LlamaConfig::FLAVORS.iter().zip(counts) {
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
