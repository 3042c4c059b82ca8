//! The shape of DeepSeek-V2 and V3, and the sizes that were published.

use burn_titan_core::model::AuxiliaryLosses;
use burn_titan_kernels::attention::MAX_HEAD_DIM;
use burn_titan_kernels::{ExpertGroups, GroupScore, RouterScores, Routing};
use serde::{Deserialize, Serialize};

use super::flavors;
use crate::config::{ConfigProblem, MAX_LAYERS, MAX_VOCABULARY, ModelConfig, Rules, elements};
use crate::rotary::{InterleavedRotary, Yarn};

/// What scores the experts of a token, and what was published with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertScores {
    /// The softmax over all experts; a group of experts is as good as its best one (DeepSeek-V2).
    Softmax,
    /// The sigmoid of each logit; a group is as good as its best two together, and a number for each expert balances the
    /// choice (DeepSeek-V3).
    Sigmoid,
}

/// The shape of a DeepSeek model.
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
    /// The first of them, which have a dense feed-forward; the others have experts.
    pub n_dense_layers: usize,
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
    /// Experts of a block that a router chooses from.
    pub n_experts: usize,
    /// Those that each token meets.
    pub top_k: usize,
    /// Width of the middle of an expert (SwiGLU).
    pub expert_dim: usize,
    /// Experts of a block that every token meets besides.
    pub n_shared_experts: usize,
    /// What scores experts.
    pub scores: ExpertScores,
    /// Whether the weights of the experts of a token add up to `route_scale`.
    pub renormalise: bool,
    /// What these weights are multiplied by.
    pub route_scale: f64,
    /// Groups that experts lie in; 1 for none.
    pub n_groups: usize,
    /// Groups that a token chooses its experts from.
    pub chosen_groups: usize,
    /// How far a step moves the numbers that balance the choice of experts
    /// ([Wang et al., 2024](https://arxiv.org/abs/2408.15664)). With 0 they stay as they are; a model of softmax scores
    /// has none then.
    pub load_balance_rate: f64,
    /// Factor of the balance loss of each sequence, which is added to the loss (DeepSeek-V3, equation
    /// 17; of V2's three balance losses, that of experts); 0 for none.
    #[serde(default)]
    pub sequence_balance_loss: f64,
    /// Factor of the loss that keeps the router's logits small ([ST-MoE](https://arxiv.org/abs/2202.08906), equation 5);
    /// 0 for none.
    #[serde(default)]
    pub router_z_loss: f64,
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
    /// DeepSeek-V2 and `671b` DeepSeek-V3, without the module that predicts a second token.
    fn flavor(name: &str) -> Option<Self> {
        flavors::flavor(name)
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
            ("n_experts", self.n_experts),
            ("top_k", self.top_k),
            ("expert_dim", self.expert_dim),
            ("n_groups", self.n_groups),
            ("chosen_groups", self.chosen_groups),
            ("vocab_size", self.vocab_size),
            ("max_seq_len", self.max_seq_len),
        ]);
        rules.pairs("qk_rope_head_dim", self.qk_rope_head_dim);
        // What the fused attention takes on every device.
        let rotated = self.qk_rope_head_dim.min(MAX_HEAD_DIM);
        rules.at_most(&[
            ("n_layers", self.n_layers, MAX_LAYERS),
            ("n_dense_layers", self.n_dense_layers, self.n_layers),
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
        self.check_choice(&mut rules);
        rules.countable(self.checked_parameter_count());
        rules.problems
    }
}

impl DeepSeekV3Config {
    /// What the choice of experts needs.
    fn check_choice(&self, rules: &mut Rules) {
        let Self { n_experts, n_groups, chosen_groups, .. } = *self;
        rules.at_most(&[("chosen_groups", chosen_groups, n_groups)]);
        if n_groups > 0 && !n_experts.is_multiple_of(n_groups) {
            let message = format!("is {n_groups}: expected a divisor of n_experts ({n_experts})");
            rules.report("n_groups", message);
        }
        let groups = chosen_groups.min(n_groups);
        rules.at_most(&[("top_k", self.top_k, n_experts / n_groups.max(1) * groups)]);
        rules.above_0(&[("route_scale", self.route_scale)]);
        rules.single_precision("route_scale", self.route_scale);
        rules.at_least_0("load_balance_rate", self.load_balance_rate);
        rules.at_least_0("sequence_balance_loss", self.sequence_balance_loss);
        rules.at_least_0("router_z_loss", self.router_z_loss);
        // DeepSeek-V2's code has one or the other.
        if self.scores == ExpertScores::Softmax && self.renormalise && self.route_scale != 1.0 {
            let scale = self.route_scale;
            let message = format!("is {scale}: expected 1 where softmax scores are renormalised");
            rules.report("route_scale", message);
        }
    }

    /// Whether numbers balance the choice of experts.
    pub fn balanced(&self) -> bool {
        self.scores == ExpertScores::Sigmoid || self.load_balance_rate > 0.0
    }

    /// How a router chooses.
    pub fn routing(&self) -> Routing {
        let (scores, by) = match self.scores {
            ExpertScores::Softmax => (RouterScores::Softmax, GroupScore::Best),
            ExpertScores::Sigmoid => (RouterScores::Sigmoid, GroupScore::BestTwo),
        };
        let groups = ExpertGroups { groups: self.n_groups, chosen: self.chosen_groups, by };
        Routing {
            top_k: self.top_k,
            scores,
            renormalise: self.renormalise,
            scale: self.route_scale,
            groups: (self.n_groups > 1).then_some(groups),
        }
    }

    /// What layers add to the loss.
    pub fn auxiliary_losses(&self) -> AuxiliaryLosses {
        let Self { sequence_balance_loss: sequence_balance, router_z_loss: router_z, .. } = *self;
        AuxiliaryLosses { sequence_balance, router_z }
    }

    /// All parameters, those that balance experts included. Saturates where a size is absurd, which
    /// [`validate`](ModelConfig::validate) reports.
    pub fn parameter_count(&self) -> u64 {
        self.checked_parameter_count().unwrap_or(u64::MAX)
    }

    fn checked_parameter_count(&self) -> Option<u64> {
        let Self { dim, n_layers, ffn_dim, n_experts, expert_dim, vocab_size, .. } = *self;
        let attention = self.attention_parameter_count()?;
        let dense = elements(&[&[3, dim, ffn_dim]])?;
        let experts = elements(&[
            &[n_experts, 3, dim, expert_dim],
            &[self.n_shared_experts, 3, dim, expert_dim],
            &[dim, n_experts], // the router
            &[usize::from(self.balanced()), n_experts],
        ])?;
        let outer = elements(&[&[2, vocab_size, dim], &[dim]])?;
        let n_dense = self.n_dense_layers.min(n_layers);
        let blocks = |count: usize, feed_forward: u64| {
            attention.checked_add(feed_forward)?.checked_mul(count as u64)
        };
        let blocks = blocks(n_dense, dense)?.checked_add(blocks(n_layers - n_dense, experts)?)?;
        blocks.checked_add(outer)
    }

    /// The parameters of a block but for its feed-forward; `None` where there are too many to count.
    fn attention_parameter_count(&self) -> Option<u64> {
        let Self { dim, n_heads, kv_lora_rank: rank, qk_nope_head_dim: nope, .. } = *self;
        let Self { qk_rope_head_dim: rope, v_head_dim: value, .. } = *self;
        let low = self.q_lora_rank.unwrap_or(0);
        let source = self.q_lora_rank.unwrap_or(dim);
        elements(&[
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
            &[2, dim],              // norms
        ])
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
    use super::super::modules::model;
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
        let cases: [(&str, &str, Change); 17] = [
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
            ("n_dense_layers", "is 7: expected at most 6", |c| c.n_dense_layers = 7),
            ("expert_dim", "is 0: expected at least 1", |c| c.expert_dim = 0),
            ("top_k", "is 5: expected at most 4", |c| c.top_k = 5),
            ("chosen_groups", "is 5: expected at most 4", |c| c.chosen_groups = 5),
            ("n_groups", "is 3: expected a divisor of n_experts (8)", |c| c.n_groups = 3),
            ("load_balance_rate", "is -1: expected a number of at least 0", |c| {
                c.load_balance_rate = -1.0;
            }),
            ("route_scale", "is 2.5: expected 1 where softmax scores are renormalised", |c| {
                c.scores = ExpertScores::Softmax;
            }),
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
        let debug = DeepSeekV3Config::flavor("debug").unwrap();
        let softmax = DeepSeekV3Config {
            q_lora_rank: None,
            scores: ExpertScores::Softmax,
            load_balance_rate: 0.0,
            n_shared_experts: 0,
            n_groups: 1,
            chosen_groups: 1,
            route_scale: 1.0,
            ..debug.clone()
        };
        let dense = DeepSeekV3Config { n_dense_layers: debug.n_layers, ..debug.clone() };
        for config in [debug, softmax, dense] {
            assert_eq!(config.validate(), []);
            assert_eq!(config.parameter_count(), model(&config).parameter_count());
        }
    }
}
