//! `config.json` of a Hugging Face Qwen3 model with experts.

use std::path::Path;

use burn_titan_core::checkpoint::HostDtype;
use serde_json::{Value, json};

use super::config::Qwen3MoeConfig;
use super::modules::model;
use crate::attention::FusedAttention;
use crate::config::ModelConfig;
use crate::hf::{
    ATTENTION, EXPERTS, HuggingFace, Keys, ModelFolderError, NORMS, Names, QUERY_KEY_NORMS,
    UNBALANCED, dtype_name, parameter_shapes, rope_parameters,
};

/// Values that `transformers` takes where the key is absent.
const DEFAULT_KV_HEADS: usize = 4;
const DEFAULT_NORM_EPS: f64 = 1e-6;
const DEFAULT_MAX_SEQ_LEN: usize = 32_768;

impl HuggingFace for Qwen3MoeConfig {
    const ARCHITECTURE: &'static str = "Qwen3MoeForCausalLM";
    const MODEL_TYPE: &'static str = "qwen3_moe";
    const NAMES: Names = Names {
        model: "Qwen3 MoE",
        block: &[NORMS, ATTENTION, QUERY_KEY_NORMS, EXPERTS, UNBALANCED],
    };

    /// Another architecture, biases, another activation, scaled or partial RoPE, windows and layers without experts are
    /// refused. Published models do not balance the choice of experts by numbers: `load_balance_rate` is 0.
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
        // What `transformers` 5 writes for `num_experts`.
        let n_experts = match keys.size("num_local_experts")? {
            Some(experts) => experts,
            None => keys.required_size("num_experts")?,
        };
        let dim = keys.required_size("hidden_size")?;
        let n_heads = keys.required_size("num_attention_heads")?;
        let config = Self {
            dim,
            n_layers: keys.required_size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: keys.size("num_key_value_heads")?.unwrap_or(DEFAULT_KV_HEADS),
            head_dim: keys.size("head_dim")?.unwrap_or(dim / n_heads.max(1)),
            n_experts,
            top_k: keys.required_size("num_experts_per_tok")?,
            expert_dim: keys.required_size("moe_intermediate_size")?,
            renormalise: keys.flag("norm_topk_prob")?.unwrap_or(false),
            load_balance_rate: 0.0,
            sequence_balance_loss: 0.0,
            router_z_loss: 0.0,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &Value) -> Result<Qwen3MoeConfig, String> {
        let config = Qwen3MoeConfig::from_json(json, Path::new("config.json"));
        config.map_err(|error| error.to_string())
    }

    /// Qwen3-30B-A3B as it was published.
    fn published() -> Value {
        json!({
            "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1,
            "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
            "initializer_range": 0.02, "intermediate_size": 6144,
            "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
            "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true,
            "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
            "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false,
            "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false,
            "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false,
            "vocab_size": 151936,
        })
    }

    #[test]
    fn both_styles_give_the_published_config() {
        let config = Qwen3MoeConfig::flavor("30b-a3b").unwrap();
        let mut json = published();
        assert_eq!(read(&json).unwrap(), config);
        let object = json.as_object_mut().unwrap();
        object.remove("rope_theta");
        object.remove("num_experts");
        json["num_local_experts"] = json!(128);
        json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1000000.0});
        assert_eq!(read(&json).unwrap(), config);
    }

    /// All but what balances the choice of experts, which no key there says.
    #[test]
    fn every_flavor_survives_the_way_there_and_back() {
        for flavor in Qwen3MoeConfig::FLAVORS {
            let config = Qwen3MoeConfig::flavor(flavor).unwrap();
            let back = read(&config.to_json(HostDtype::BF16)).unwrap();
            assert_eq!(back, Qwen3MoeConfig { load_balance_rate: 0.0, ..config }, "{flavor}");
        }
    }

    #[test]
    fn absent_keys_take_the_defaults_of_transformers() {
        let mut json = published();
        for key in ["head_dim", "num_key_value_heads", "rms_norm_eps", "norm_topk_prob"] {
            json.as_object_mut().unwrap().remove(key);
        }
        json["max_position_embeddings"] = Value::Null;
        let config = read(&json).unwrap();
        assert_eq!((config.head_dim, config.n_kv_heads), (64, 4));
        assert_eq!(
            (config.norm_eps, config.renormalise, config.max_seq_len),
            (1e-6, false, 32_768)
        );
    }

    #[test]
    fn what_ours_does_not_do_is_refused() {
        let cases = [
            ("decoder_sparse_step", json!(2), "decoder_sparse_step` is 2: only 1 is supported"),
            ("mlp_only_layers", json!([0]), "mlp_only_layers` is [0]: only [] is supported"),
            (
                "num_experts_per_tok",
                json!(129),
                "num_experts_per_tok` is 129: expected at most 128",
            ),
            ("moe_intermediate_size", json!(0), "moe_intermediate_size` is 0: expected at least 1"),
            ("num_experts", Value::Null, "num_experts` is missing: expected a whole number"),
            ("num_experts", json!(0), "num_experts` is 0: expected at least 1"),
        ];
        for (key, value, problem) in cases {
            let mut json = published();
            json[key] = value;
            assert_eq!(read(&json).unwrap_err(), format!("config.json: key `{problem}"));
        }
    }
}
