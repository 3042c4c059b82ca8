//! `config.json` of a Hugging Face Qwen3 model with experts.

use std::path::Path;

use burn_titan_core::checkpoint::HostDtype;
use serde_json::{Value, json};

use super::config::Qwen3MoeConfig;
use super::modules::model;
use crate::attention::FusedAttention;
use crate::config::ModelConfig;
use crate::hf::{
    ATTENTION, HuggingFace, Keys, ModelFolderError, NORMS, Names, QUERY_KEY_NORMS, dtype_name,
    parameter_shapes, rope_parameters,
};

/// Values that `transformers` takes where the key is absent.
const DEFAULT_KV_HEADS: usize = 4;
const DEFAULT_HEAD_DIM: usize = 128;
const DEFAULT_NORM_EPS: f64 = 1e-6;
const DEFAULT_MAX_SEQ_LEN: usize = 32_768;

impl HuggingFace for Qwen3MoeConfig {
    const ARCHITECTURE: &'static str = "Qwen3MoeForCausalLM";
    const MODEL_TYPE: &'static str = "qwen3_moe";
    const NAMES: Names = Names { model: "Qwen3 MoE", block: &[NORMS, ATTENTION, QUERY_KEY_NORMS] };

    fn from_json(json: &Value, path: &Path) -> Result<Self, ModelFolderError> {
        let keys = Keys::new(json, path);
        keys.require::<Self>()?;
        keys.refuse_others(&[
            ("hidden_act", json!("silu")),
            ("attention_bias", json!(false)),
            ("partial_rotary_factor", json!(1.0)),
            ("use_sliding_window", json!(false)),
            ("quantization_config", Value::Null),
            ("decoder_sparse_step", json!(1)),
            ("mlp_only_layers", json!([])),
        ])?;
        let (rope_theta, _) = keys.rope(None)?;
        let experts = match keys.size("num_experts")? {
            Some(experts) => experts,
            None => keys.required_size("num_local_experts")?,
        };
        let config = Self {
            dim: keys.required_size("hidden_size")?,
            n_layers: keys.required_size("num_hidden_layers")?,
            n_heads: keys.required_size("num_attention_heads")?,
            n_kv_heads: keys.size("num_key_value_heads")?.unwrap_or(DEFAULT_KV_HEADS),
            head_dim: keys.size("head_dim")?.unwrap_or(DEFAULT_HEAD_DIM),
            n_experts: experts,
            top_k: keys.required_size("num_experts_per_tok")?,
            expert_dim: keys.required_size("moe_intermediate_size")?,
            renormalise: keys.flag("norm_topk_prob")?.unwrap_or(false),
            load_balance_rate: 0.0,
            vocab_size: keys.required_size("vocab_size")?,
            norm_eps: keys.number("rms_norm_eps")?.unwrap_or(DEFAULT_NORM_EPS),
            rope_theta,
            tie_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            max_seq_len: keys.size("max_position_embeddings")?.unwrap_or(DEFAULT_MAX_SEQ_LEN),
        };
        match config.validate().into_iter().next() {
            None => Ok(config),
            Some(problem) => Err(keys.problem(problem)),
        }
    }

    fn to_json(&self, dtype: HostDtype) -> Value {
        json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "decoder_sparse_step": 1,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.expert_dim * self.top_k,
            "max_position_embeddings": self.max_seq_len,
            "max_window_layers": self.n_layers,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.expert_dim,
            "norm_topk_prob": self.renormalise,
            "num_attention_heads": self.n_heads,
            "num_experts": self.n_experts,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_kv_heads,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": rope_parameters(self.rope_theta, None),
            "rope_scaling": null,
            "rope_theta": self.rope_theta,
            "sliding_window": null,
            "tie_word_embeddings": self.tie_embeddings,
            "torch_dtype": dtype_name(dtype),
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab_size,
        })
    }

    fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        parameter_shapes(&model::<FusedAttention>(self))
    }
}
