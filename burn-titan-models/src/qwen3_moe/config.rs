//! The shape of a Qwen3 model with experts, and the sizes that were published.

use burn_titan_core::model::AuxiliaryLosses;
use burn_titan_kernels::attention::MAX_HEAD_DIM;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigProblem, MAX_LAYERS, MAX_VOCABULARY, ModelConfig, Rules, elements};

/// The shape of a Qwen3 model with experts.
///
/// The sizes are those of the [Qwen3 Technical Report](https://arxiv.org/abs/2505.09388), table 2, and of the published
/// `config.json` of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qwen3MoeConfig {
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
    /// Experts of a block.
    pub n_experts: usize,
    /// Experts that each token meets.
    pub top_k: usize,
    /// Width of the middle of an expert (SwiGLU).
    pub expert_dim: usize,
    /// Whether the weights of the experts of a token add up to 1.
    pub renormalise: bool,
    /// How far a step moves the numbers that balance the choice of experts
    /// ([Wang et al., 2024](https://arxiv.org/abs/2408.15664)); 0 for none, as the published models have it.
    pub load_balance_rate: f64,
    /// Factor of the balance loss of each sequence, which is added to the loss ([DeepSeek-V3](https://arxiv.org/abs/2412.19437),
    /// equation 17); 0 for none.
    #[serde(default)]
    pub sequence_balance_loss: f64,
    /// Factor of the loss that keeps the router's logits small ([ST-MoE](https://arxiv.org/abs/2202.08906), equation 5);
    /// 0 for none.
    #[serde(default)]
    pub router_z_loss: f64,
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

impl ModelConfig for Qwen3MoeConfig {
    const FAMILY: &'static str = "qwen3_moe";
    const FLAVORS: &'static [&'static str] = &["debug", "30b-a3b", "235b-a22b"];

    /// `debug` is a small model of the same kind for the bundled tokenizer, whose experts are balanced; the others were
    /// published.
    fn flavor(name: &str) -> Option<Self> {
        let published = Self {
            dim: 2048,
            n_layers: 48,
            n_heads: 32,
            n_kv_heads: 4,
            head_dim: 128,
            n_experts: 128,
            top_k: 8,
            expert_dim: 768,
            renormalise: true,
            load_balance_rate: 0.0,
            sequence_balance_loss: 0.0,
            router_z_loss: 0.0,
            vocab_size: 151_936,
            norm_eps: 1e-6,
            rope_theta: 1_000_000.0,
            tie_embeddings: false,
            max_seq_len: 40_960,
        };
        Some(match name {
            "debug" => Self {
                dim: 256,
                n_layers: 6,
                n_heads: 8,
                head_dim: 64,
                n_experts: 8,
                top_k: 2,
                expert_dim: 384,
                load_balance_rate: 1e-2,
                vocab_size: 2048,
                max_seq_len: 2048,
                ..published
            },
            "30b-a3b" => published,
            "235b-a22b" => {
                Self { dim: 4096, n_layers: 94, n_heads: 64, expert_dim: 1536, ..published }
            }
            _ => return None,
        })
    }

    fn validate(&self) -> Vec<ConfigProblem> {
        let mut rules = Rules::default();
        rules.at_least_1(&[
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("n_experts", self.n_experts),
            ("top_k", self.top_k),
            ("expert_dim", self.expert_dim),
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
            ("top_k", self.top_k, self.n_experts),
        ]);
        rules.above_0(&[("norm_eps", self.norm_eps), ("rope_theta", self.rope_theta)]);
        rules.single_precision("norm_eps", self.norm_eps);
        rules.at_least_0("load_balance_rate", self.load_balance_rate);
        rules.at_least_0("sequence_balance_loss", self.sequence_balance_loss);
        rules.at_least_0("router_z_loss", self.router_z_loss);
        rules.countable(self.checked_parameter_count());
        rules.problems
    }
}

impl Qwen3MoeConfig {
    /// Whether numbers balance the choice of experts.
    pub fn balanced(&self) -> bool {
        self.load_balance_rate > 0.0
    }

    /// What layers add to the loss.
    pub fn auxiliary_losses(&self) -> AuxiliaryLosses {
        let Self { sequence_balance_loss: sequence_balance, router_z_loss: router_z, .. } = *self;
        AuxiliaryLosses { sequence_balance, router_z }
    }

    /// All parameters; tied weights count once. Saturates where a size is absurd, which
    /// [`validate`](ModelConfig::validate) reports.
    pub fn parameter_count(&self) -> u64 {
        self.checked_parameter_count().unwrap_or(u64::MAX)
    }

    fn checked_parameter_count(&self) -> Option<u64> {
        let Self { dim, n_heads, n_kv_heads, head_dim, n_experts, vocab_size, .. } = *self;
        let block = elements(&[
            &[2, dim, n_heads, head_dim],    // wq, wo
            &[2, dim, n_kv_heads, head_dim], // wk, wv
            &[2, head_dim],                  // norms of queries and keys
            &[n_experts, 3, dim, self.expert_dim],
            &[dim, n_experts], // the router
            &[usize::from(self.balanced()), n_experts],
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
        for name in Qwen3MoeConfig::FLAVORS {
            assert_eq!(Qwen3MoeConfig::flavor(name).unwrap().validate(), [], "{name}");
        }
    }

    #[test]
    fn broken_sizes_are_named() {
        type Change = fn(&mut Qwen3MoeConfig);
        let cases: [(&str, &str, Change); 4] = [
            (
                "router_z_loss",
                "is 1e39: expected a number from 1.1754944e-38 to 3.4028235e38 (single precision)",
                |c| {
                    c.router_z_loss = 1e39;
                },
            ),
            ("top_k", "is 9: expected at most 8", |c| c.top_k = 9),
            ("load_balance_rate", "is -1: expected a number of at least 0", |c| {
                c.load_balance_rate = -1.0;
            }),
            ("n_experts", "is 0: expected at least 1", |c| (c.n_experts, c.top_k) = (0, 0)),
        ];
        for (field, message, change) in cases {
            let mut config = Qwen3MoeConfig::flavor("debug").unwrap();
            change(&mut config);
            let problem = ConfigProblem { field, message: message.into() };
            assert!(config.validate().contains(&problem), "{:?}", config.validate());
        }
    }
}
