//! The shape of a dense Qwen3 model, and the sizes that were published.

use burn_titan_kernels::attention::MAX_HEAD_DIM;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigProblem, MAX_LAYERS, MAX_VOCABULARY, ModelConfig, Rules, elements};

/// The shape of a dense Qwen3 model.
///
/// The sizes are those of the [Qwen3 Technical Report](https://arxiv.org/abs/2505.09388), table 1, and of the published
/// `config.json` of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qwen3Config {
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
    /// Added to the mean square in RMSNorm, those of queries and keys included.
    pub norm_eps: f64,
    /// Base of the RoPE frequencies ([RoFormer](https://arxiv.org/abs/2104.09864)).
    pub rope_theta: f64,
    /// Whether the head uses the embedding's weights.
    pub tie_embeddings: bool,
    /// Longest sequence the model is meant for, in tokens.
    pub max_seq_len: usize,
}

impl ModelConfig for Qwen3Config {
    const FAMILY: &'static str = "qwen3";
    const FLAVORS: &'static [&'static str] = &["debug", "0.6b", "1.7b", "4b", "8b", "14b", "32b"];

    /// `debug` is a small model of the same kind for the bundled tokenizer; the others were published.
    fn flavor(name: &str) -> Option<Self> {
        let config = match name {
            "debug" => {
                let published = Self::published(256, 6, 8, 4, 768);
                Self { head_dim: 64, vocab_size: 2048, max_seq_len: 2048, ..published }
            }
            "0.6b" => Self::published(1024, 28, 16, 8, 3072).tied(),
            "1.7b" => Self::published(2048, 28, 16, 8, 6144).tied(),
            "4b" => Self::published(2560, 36, 32, 8, 9728).tied(),
            "8b" => Self::published(4096, 36, 32, 8, 12_288),
            "14b" => Self::published(5120, 40, 40, 8, 17_408),
            "32b" => Self::published(5120, 64, 64, 8, 25_600),
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
        rules.countable(self.checked_parameter_count());
        rules.problems
    }
}

impl Qwen3Config {
    /// What the published sizes share.
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
            vocab_size: 151_936,
            norm_eps: 1e-6,
            rope_theta: 1_000_000.0,
            tie_embeddings: false,
            max_seq_len: 40_960,
        }
    }

    /// The small models tie their embeddings.
    fn tied(self) -> Self {
        Self { tie_embeddings: true, ..self }
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
            &[2, head_dim],                  // norms of queries and keys
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
    fn published_sizes_are_sound() {
        for name in Qwen3Config::FLAVORS {
            assert_eq!(Qwen3Config::flavor(name).unwrap().validate(), [], "{name}");
        }
        assert_eq!(Qwen3Config::flavor("0.6B"), None);
    }

    #[test]
    fn broken_sizes_are_named() {
        type Change = fn(&mut Qwen3Config);
        let cases: [(&str, &str, Change); 8] = [
            ("dim", "is 0: expected at least 1", |c| c.dim = 0),
            (
                "n_kv_heads",
                "is 3: expected a divisor of n_heads (8), so that each serves equally many",
                |c| c.n_kv_heads = 3,
            ),
            ("head_dim", "is 63: expected an even number, for RoPE", |c| c.head_dim = 63),
            ("n_layers", "is 10001: expected at most 10000", |c| c.n_layers = 10_001),
            ("head_dim", "is 258: expected at most 256", |c| c.head_dim = 258),
            ("norm_eps", "is -1: expected a number above 0", |c| c.norm_eps = -1.0),
            ("rope_theta", "is 0: expected a number above 0", |c| c.rope_theta = 0.0),
            ("dim", "and the other sizes give more parameters than can be counted", |c| {
                c.ffn_dim = usize::MAX / 2;
            }),
        ];
        for (field, message, change) in cases {
            let mut config = Qwen3Config::flavor("debug").unwrap();
            change(&mut config);
            assert_eq!(config.validate(), [ConfigProblem { field, message: message.into() }]);
        }
    }
}
