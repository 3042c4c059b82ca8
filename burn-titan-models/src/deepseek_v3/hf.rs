//! `config.json` of a Hugging Face DeepSeek-V2 or V3 model, and what its tensors are called.

use std::path::Path;

use burn_titan_core::checkpoint::HostDtype;
use serde_json::{Value, json};

use super::config::{DeepSeekV3Config, ExpertScores};
use super::modules::model;
use crate::config::{ConfigProblem, ModelConfig};
use crate::hf::Theirs::Tensor;
use crate::hf::{
    EXPERTS, FEED_FORWARD, HuggingFace, Keys, ModelFolderError, NORMS, Names, Pairs, UNBALANCED,
    dtype_name, parameter_shapes, rope_parameters,
};
use crate::rotary::Yarn;

#[cfg(test)]
mod tests;

/// DeepSeek-V2's architecture and `model_type`.
const V2: (&str, &str) = ("DeepseekV2ForCausalLM", "deepseek_v2");

/// Values that `transformers` takes where the key is absent.
const DEFAULT_NORM_EPS: f64 = 1e-6;
const DEFAULT_BETA_FAST: f64 = 32.0;
const DEFAULT_BETA_SLOW: f64 = 1.0;

const LATENT_ATTENTION: Pairs = &[
    ("attention.wq.weight", Tensor("self_attn.q_proj.weight")),
    ("attention.wq_a.weight", Tensor("self_attn.q_a_proj.weight")),
    ("attention.q_norm.weight", Tensor("self_attn.q_a_layernorm.weight")),
    ("attention.wq_b.weight", Tensor("self_attn.q_b_proj.weight")),
    ("attention.wkv_a.weight", Tensor("self_attn.kv_a_proj_with_mqa.weight")),
    ("attention.kv_norm.weight", Tensor("self_attn.kv_a_layernorm.weight")),
    ("attention.wkv_b.weight", Tensor("self_attn.kv_b_proj.weight")),
    ("attention.wo.weight", Tensor("self_attn.o_proj.weight")),
];

const SHARED_EXPERTS: Pairs = &[
    ("feed_forward.shared_experts.w1.weight", Tensor("mlp.shared_experts.gate_proj.weight")),
    ("feed_forward.shared_experts.w2.weight", Tensor("mlp.shared_experts.down_proj.weight")),
    ("feed_forward.shared_experts.w3.weight", Tensor("mlp.shared_experts.up_proj.weight")),
];

const BALANCED: Pairs = &[("feed_forward.router.bias", Tensor("mlp.gate.e_score_correction_bias"))];

impl HuggingFace for DeepSeekV3Config {
    const ARCHITECTURE: &'static str = "DeepseekV3ForCausalLM";
    const MODEL_TYPE: &'static str = "deepseek_v3";
    const OTHERS: &'static [(&'static str, &'static str)] = &[V2];
    const NAMES: Names = Names {
        model: "DeepSeek-V3",
        block: &[NORMS, LATENT_ATTENTION, FEED_FORWARD, EXPERTS, SHARED_EXPERTS, BALANCED],
    };

    /// Those of DeepSeek-V2 where scores are by softmax: it has no tensor for what balances the choice of experts.
    fn names(&self) -> Names {
        match self.scores {
            ExpertScores::Sigmoid => Self::NAMES,
            ExpertScores::Softmax => Names {
                model: "DeepSeek-V2",
                block: &[
                    NORMS,
                    LATENT_ATTENTION,
                    FEED_FORWARD,
                    EXPERTS,
                    SHARED_EXPERTS,
                    UNBALANCED,
                ],
            },
        }
    }

    /// The modules that predict further tokens: layers behind the last one, `model.layers.61.*` of DeepSeek-V3. They are
    /// for its training and for guessing ahead, and no next token depends on them.
    fn is_beside(tensor: &str, config: &Value) -> bool {
        let layer = tensor.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        let layer = layer.and_then(|number| number.parse::<u64>().ok());
        let layers = config["num_hidden_layers"].as_u64();
        layer.zip(layers).is_some_and(|(layer, layers)| layer >= layers)
    }

    /// Another architecture, biases, another activation or RoPE type, halves rotated in place of neighbours, other keys
    /// than queries, tied weights, quantised weights, dense layers between those of experts, and another choice of
    /// experts are refused. What balances the experts stays as it is: `load_balance_rate` is 0.
    fn from_json(json: &Value, path: &Path) -> Result<Self, ModelFolderError> {
        let keys = Keys::new(json, path);
        keys.require::<Self>()?;
        let scores = scores(json);
        let n_heads = keys.required_size("num_attention_heads")?;
        keys.refuse_others(&[
            ("hidden_act", json!("silu")),
            ("attention_bias", json!(false)),
            ("rope_interleave", json!(true)),
            ("num_key_value_heads", json!(n_heads)),
            ("tie_word_embeddings", json!(false)),
            ("quantization_config", Value::Null),
            ("moe_layer_freq", json!(1)),
        ])?;
        let (n_groups, chosen_groups) = groups(&keys, scores)?;
        let (rope_theta, scaling) = keys.rope(Some("yarn"))?;
        let config = Self {
            dim: keys.required_size("hidden_size")?,
            n_layers: keys.required_size("num_hidden_layers")?,
            n_dense_layers: keys.required_size("first_k_dense_replace")?,
            n_heads,
            q_lora_rank: keys.size("q_lora_rank")?,
            kv_lora_rank: keys.required_size("kv_lora_rank")?,
            qk_nope_head_dim: keys.required_size("qk_nope_head_dim")?,
            qk_rope_head_dim: keys.required_size("qk_rope_head_dim")?,
            v_head_dim: keys.required_size("v_head_dim")?,
            ffn_dim: keys.required_size("intermediate_size")?,
            n_experts: keys.required_size("n_routed_experts")?,
            top_k: keys.required_size("num_experts_per_tok")?,
            expert_dim: keys.required_size("moe_intermediate_size")?,
            n_shared_experts: keys.size("n_shared_experts")?.unwrap_or(0),
            scores,
            renormalise: (keys.flag("norm_topk_prob")?).unwrap_or(scores == ExpertScores::Sigmoid),
            route_scale: keys.required_number("routed_scaling_factor")?,
            n_groups,
            chosen_groups,
            load_balance_rate: 0.0,
            sequence_balance_loss: 0.0,
            router_z_loss: 0.0,
            vocab_size: keys.required_size("vocab_size")?,
            norm_eps: keys.number("rms_norm_eps")?.unwrap_or(DEFAULT_NORM_EPS),
            rope_theta,
            rope_scaling: scaling.map(|keys| yarn(&keys)).transpose()?,
            max_seq_len: keys.required_size("max_position_embeddings")?,
        };
        match config.validate().into_iter().next() {
            None => Ok(config),
            Some(problem) => {
                Err(keys.problem(ConfigProblem { field: key_of(problem.field), ..problem }))
            }
        }
    }

    fn to_json(&self, dtype: HostDtype) -> Value {
        let scaling = self.rope_scaling.map(scaling);
        let mut json = json!({
            "attention_bias": false,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "kv_lora_rank": self.kv_lora_rank,
            "max_position_embeddings": self.max_seq_len,
            "num_attention_heads": self.n_heads,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_heads,
            "q_lora_rank": self.q_lora_rank,
            "qk_nope_head_dim": self.qk_nope_head_dim,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "rms_norm_eps": self.norm_eps,
            "rope_interleave": true,
            "rope_parameters": rope_parameters(self.rope_theta, scaling.as_ref()),
            "rope_scaling": scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": false,
            "torch_dtype": dtype_name(dtype),
            "use_cache": true,
            "v_head_dim": self.v_head_dim,
            "vocab_size": self.vocab_size,
        });
        if let (Value::Object(json), Value::Object(more)) = (&mut json, self.experts_to_json()) {
            json.extend(more);
        }
        json
    }

    fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        parameter_shapes(&model(self))
    }
}

impl DeepSeekV3Config {
    /// The keys of `config.json` that are of experts.
    fn experts_to_json(&self) -> Value {
        let ours = (Self::ARCHITECTURE, Self::MODEL_TYPE);
        let ((architecture, model_type), function, method) = match self.scores {
            ExpertScores::Sigmoid => (ours, "sigmoid", "noaux_tc"),
            ExpertScores::Softmax if self.n_groups > 1 => (V2, "softmax", "group_limited_greedy"),
            ExpertScores::Softmax => (V2, "softmax", "greedy"),
        };
        json!({
            "architectures": [architecture],
            "model_type": model_type,
            "first_k_dense_replace": self.n_dense_layers,
            "moe_intermediate_size": self.expert_dim,
            "moe_layer_freq": 1,
            "n_group": self.n_groups,
            "n_routed_experts": self.n_experts,
            "n_shared_experts": self.n_shared_experts,
            "norm_topk_prob": self.renormalise,
            "num_experts_per_tok": self.top_k,
            "num_nextn_predict_layers": 0,
            "routed_scaling_factor": self.route_scale,
            "scoring_func": function,
            "topk_group": self.chosen_groups,
            "topk_method": method,
        })
    }
}

/// What scores experts: that is what tells DeepSeek-V2 from V3.
fn scores(json: &Value) -> ExpertScores {
    let named = json["architectures"].as_array();
    let is_v2 = match named {
        Some(names) => names.iter().any(|name| name == V2.0),
        None => json["model_type"] == V2.1,
    };
    if is_v2 { ExpertScores::Softmax } else { ExpertScores::Sigmoid }
}

/// Groups of experts, and those that a token chooses.
fn groups(keys: &Keys<'_>, scores: ExpertScores) -> Result<(usize, usize), ModelFolderError> {
    let sizes = || Ok((keys.required_size("n_group")?, keys.required_size("topk_group")?));
    match scores {
        ExpertScores::Sigmoid => {
            let only = [("scoring_func", json!("sigmoid")), ("topk_method", json!("noaux_tc"))];
            keys.refuse_others(&only)?;
            sizes()
        }
        ExpertScores::Softmax => {
            keys.refuse_others(&[("scoring_func", json!("softmax"))])?;
            match keys.get("topk_method") {
                Some(method) if method == "group_limited_greedy" => sizes(),
                None => Ok((1, 1)),
                Some(method) if method == "greedy" => Ok((1, 1)),
                Some(other) => {
                    let supported = "only \"greedy\" and \"group_limited_greedy\" are supported";
                    Err(keys.error("topk_method", format!("is {other}: {supported}")))
                }
            }
        }
    }
}

/// The key that gives a field of ours, where other families call it otherwise or have none.
fn key_of(field: &'static str) -> &'static str {
    match field {
        "n_dense_layers" => "first_k_dense_replace",
        "n_experts" => "n_routed_experts",
        "route_scale" => "routed_scaling_factor",
        "n_groups" => "n_group",
        "chosen_groups" => "topk_group",
        same => same,
    }
}

fn yarn(keys: &Keys<'_>) -> Result<Yarn, ModelFolderError> {
    keys.refuse_others(&[("attention_factor", Value::Null), ("truncate", json!(true))])?;
    let original = "original_max_position_embeddings";
    Ok(Yarn {
        factor: keys.required_number("factor")?,
        beta_fast: keys.number("beta_fast")?.unwrap_or(DEFAULT_BETA_FAST),
        beta_slow: keys.number("beta_slow")?.unwrap_or(DEFAULT_BETA_SLOW),
        mscale: keys.required_number("mscale")?,
        mscale_all_dim: keys.required_number("mscale_all_dim")?,
        original_max_position_embeddings: keys.required_size(original)?,
    })
}

/// `rope_scaling`; the type has two names, of which the published code reads the older.
fn scaling(yarn: Yarn) -> Value {
    json!({
        "type": "yarn",
        "rope_type": "yarn",
        "factor": yarn.factor,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
        "mscale_all_dim": yarn.mscale_all_dim,
        "original_max_position_embeddings": yarn.original_max_position_embeddings,
    })
}
