//! The shape of DeepSeek-V2 and V3 but for their experts, and the sizes that were published.

use burn_titan_kernels::attention::MAX_HEAD_DIM;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigProblem, MAX_LAYERS, MAX_VOCABULARY, ModelConfig, Rules, elements};
use crate::rotary::{InterleavedRotary, Yarn};

/// The shape of a DeepSeek model, but for its experts.
///
/// The sizes are those of [DeepSeek-V2](https://arxiv.org/abs/2405.04434) (also its Lite version, appendix B) and
/// [DeepSeek-V3](https://arxiv.org/abs/2412.19437), and of the published `config.json` of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepSeekV3Config {
    /// Width of the residual stream.
    pub dim: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Heads of a block's attention.
    pub n_heads: usize,
    /// Width of what queries are made of; `None` where they are made of the stream itself.
    pub q_lora_rank: Option<usize>,
    /// Width of what keys and values are made of.
    pub kv_lora_rank: usize,
    /// Elements of a head's queries and keys that are not rotated.
    pub qk_nope_head_dim: usize,
    /// Elements that are, an even number; all heads share those of the keys.
    pub qk_rope_head_dim: usize,
    /// Width of a head's values, at most that of its queries.
    pub v_head_dim: usize,
    /// Width of the feed-forward middle (SwiGLU) of dense blocks.
    pub ffn_dim: usize,
    /// Rows of the embedding, at least the tokenizer's tokens.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the RoPE frequencies ([RoFormer](https://arxiv.org/abs/2104.09864)).
    pub rope_theta: f64,
    /// Stretching of the RoPE frequencies for contexts longer than those of pre-training.
    pub rope_scaling: Option<Yarn>,
    /// Longest sequence the model is meant for, in tokens.
    pub max_seq_len: usize,
}

impl ModelConfig for DeepSeekV3Config {
    const FAMILY: &'static str = "deepseek_v3";
    const FLAVORS: &'static [&'static str] = &["debug", "16b", "236b", "671b"];

    /// `debug` is a small model of the same kind for the bundled tokenizer; `16b` is DeepSeek-V2-Lite, `236b`
    /// DeepSeek-V2 and `671b` DeepSeek-V3.
    fn flavor(name: &str) -> Option<Self> {
        let config = match name {
            "debug" => Self {
                q_lora_rank: Some(96),
                kv_lora_rank: 64,
                qk_nope_head_dim: 32,
                qk_rope_head_dim: 16,
                v_head_dim: 32,
                vocab_size: 2048,
                max_seq_len: 2048,
                ..Self::published(256, 6, 8, 768)
            },
            "16b" => {
                let v2 = Self::published(2048, 27, 16, 10_944).of_v2();
                Self { q_lora_rank: None, ..v2 }.with_mscale(0.707)
            }
            "236b" => Self::published(5120, 60, 128, 12_288).of_v2(),
            "671b" => Self::published(7168, 61, 128, 18_432),
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
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
            ("ffn_dim", self.ffn_dim),
            ("vocab_size", self.vocab_size),
            ("max_seq_len", self.max_seq_len),
        ]);
        rules.pairs("qk_rope_head_dim", self.qk_rope_head_dim);
        // What the fused attention takes on every device.
        let rotated = self.qk_rope_head_dim.min(MAX_HEAD_DIM);
        rules.at_most(&[
            ("n_layers", self.n_layers, MAX_LAYERS),
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("qk_rope_head_dim", self.qk_rope_head_dim, MAX_HEAD_DIM),
            ("qk_nope_head_dim", self.qk_nope_head_dim, MAX_HEAD_DIM - rotated),
            ("v_head_dim", self.v_head_dim, self.qk_nope_head_dim.saturating_add(rotated)),
        ]);
        rules.above_0(&[("norm_eps", self.norm_eps), ("rope_theta", self.rope_theta)]);
        rules.single_precision("norm_eps", self.norm_eps);
        if let Some(yarn) = self.rope_scaling {
            if let Some(message) = yarn.problem() {
                rules.report("rope_scaling", message);
            }
            if self.rope_theta > 0.0 && self.rope_theta <= 1.0 {
                let message = format!("is {}: expected more than 1, for YaRN", self.rope_theta);
                rules.report("rope_theta", message);
            }
        }
        rules.countable(self.dense_parameter_count());
        rules.problems
    }
}

impl DeepSeekV3Config {
    /// What the published sizes share, or nearly all do.
    fn published(dim: usize, n_layers: usize, n_heads: usize, ffn_dim: usize) -> Self {
        Self {
            dim,
            n_layers,
            n_heads,
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            ffn_dim,
            vocab_size: 129_280,
            norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: Some(Yarn {
                factor: 40.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                mscale: 1.0,
                mscale_all_dim: 1.0,
                original_max_position_embeddings: 4096,
            }),
            max_seq_len: 163_840,
        }
    }

    /// The words of DeepSeek-V2.
    fn of_v2(self) -> Self {
        Self { vocab_size: 102_400, ..self }
    }

    fn with_mscale(self, mscale: f64) -> Self {
        let scaled = |yarn| Yarn { mscale, mscale_all_dim: mscale, ..yarn };
        Self { rope_scaling: self.rope_scaling.map(scaled), ..self }
    }

    /// The parameters of a model whose blocks are all dense; `None` where there are too many to count.
    fn dense_parameter_count(&self) -> Option<u64> {
        let Self { dim, n_heads, kv_lora_rank: rank, qk_nope_head_dim: nope, .. } = *self;
        let Self { qk_rope_head_dim: rope, v_head_dim: value, ffn_dim, vocab_size, .. } = *self;
        let low = self.q_lora_rank.unwrap_or(0);
        let source = self.q_lora_rank.unwrap_or(dim);
        let block = elements(&[
            &[dim, low], // wq_a, and its norm
            &[low],
            &[source, n_heads, nope], // wq_b, or wq
            &[source, n_heads, rope],
            &[dim, rank], // wkv_a, and its norm
            &[dim, rope],
            &[rank],
            &[rank, n_heads, nope], // wkv_b
            &[rank, n_heads, value],
            &[n_heads, value, dim], // wo
            &[3, dim, ffn_dim],
            &[2, dim], // norms
        ])?;
        let outer = elements(&[&[2, vocab_size, dim], &[dim]])?;
        block.checked_mul(self.n_layers as u64)?.checked_add(outer)
    }

    /// Width of a head's queries and keys.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// The rotation of queries and keys.
    pub fn rotary(&self) -> InterleavedRotary {
        InterleavedRotary {
            width: self.qk_rope_head_dim,
            theta: self.rope_theta,
            yarn: self.rope_scaling,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn_titan_core::model::parameter_elements;

    use super::super::modules::dense_block;
    use super::*;

    #[test]
    fn published_sizes_are_sound() {
        for name in DeepSeekV3Config::FLAVORS {
            assert_eq!(DeepSeekV3Config::flavor(name).unwrap().validate(), [], "{name}");
        }
        assert_eq!(DeepSeekV3Config::flavor("671B"), None);
    }

    #[test]
    fn broken_sizes_are_named() {
        type Change = fn(&mut DeepSeekV3Config);
        let cases: [(&str, &str, Change); 10] = [
            ("kv_lora_rank", "is 0: expected at least 1", |c| c.kv_lora_rank = 0),
            ("q_lora_rank", "is 0: expected at least 1", |c| c.q_lora_rank = Some(0)),
            ("qk_rope_head_dim", "is 15: expected an even number, for RoPE", |c| {
                c.qk_rope_head_dim = 15;
            }),
            ("qk_nope_head_dim", "is 241: expected at most 240", |c| c.qk_nope_head_dim = 241),
            ("v_head_dim", "is 49: expected at most 48", |c| c.v_head_dim = 49),
            ("norm_eps", "is 0: expected a number above 0", |c| c.norm_eps = 0.0),
            ("rope_theta", "is 1: expected more than 1, for YaRN", |c| c.rope_theta = 1.0),
            ("rope_scaling", "has factor 0: expected a number of at least 1", |c| {
                c.rope_scaling.as_mut().unwrap().factor = 0.0;
            }),
            ("n_layers", "is 10001: expected at most 10000", |c| c.n_layers = 10_001),
            ("dim", "and the other sizes give more parameters than can be counted", |c| {
                c.n_heads = usize::MAX / 2;
            }),
        ];
        for (field, message, change) in cases {
            let mut config = DeepSeekV3Config::flavor("debug").unwrap();
            change(&mut config);
            assert_eq!(config.validate(), [ConfigProblem { field, message: message.into() }]);
        }
        let mut config = DeepSeekV3Config::flavor("debug").unwrap();
        (config.qk_nope_head_dim, config.qk_rope_head_dim) = (usize::MAX, usize::MAX - 1);
        assert_eq!(config.validate().len(), 3);
    }

    #[test]
    fn parameters_are_those_of_the_modules() {
        let device = Device::flex();
        let debug = DeepSeekV3Config::flavor("debug").unwrap();
        for config in [DeepSeekV3Config { q_lora_rank: None, ..debug.clone() }, debug] {
            let block = parameter_elements(&dense_block(&config, &device)) * config.n_layers;
            let outer = (2 * config.vocab_size + 1) * config.dim;
            assert_eq!(config.dense_parameter_count(), Some((block + outer) as u64));
        }
    }
}
