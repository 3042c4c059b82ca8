//! `config.json` of a Hugging Face Llama model.

use std::path::Path;

use burn_titan_core::checkpoint::HostDtype;
use serde_json::{Value, json};

use crate::attention::FusedAttention;
use crate::config::ModelConfig;
use crate::hf::{
    ATTENTION, FEED_FORWARD, HuggingFace, Keys, ModelFolderError, NORMS, Names, dtype_name,
    parameter_shapes, rope_parameters,
};
use crate::llama3::config::{LlamaConfig, RopeScaling};
use crate::llama3::modules::model;

/// Values that `transformers` takes for a Llama model where the key is absent.
const DEFAULT_NORM_EPS: f64 = 1e-6;
const DEFAULT_MAX_SEQ_LEN: usize = 2048;

impl HuggingFace for LlamaConfig {
    const ARCHITECTURE: &'static str = "LlamaForCausalLM";
    const MODEL_TYPE: &'static str = "llama";
    const NAMES: Names = Names { model: "Llama", block: &[NORMS, ATTENTION, FEED_FORWARD] };

    /// Another architecture, biases, another activation or RoPE type, partial RoPE and a sliding window are refused.
    fn from_json(json: &Value, path: &Path) -> Result<Self, ModelFolderError> {
        let keys = Keys::new(json, path);
        keys.require::<Self>()?;
        keys.refuse_others(&[
            ("hidden_act", json!("silu")),
            ("attention_bias", json!(false)),
            ("mlp_bias", json!(false)),
            ("partial_rotary_factor", json!(1.0)),
            ("sliding_window", Value::Null),
            ("use_sliding_window", json!(false)),
            ("quantization_config", Value::Null),
        ])?;
        let dim = keys.required_size("hidden_size")?;
        let n_heads = keys.required_size("num_attention_heads")?;
        let (rope_theta, scaling) = keys.rope(Some("llama3"))?;
        let config = Self {
            dim,
            n_layers: keys.required_size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: keys.size("num_key_value_heads")?.unwrap_or(n_heads),
            head_dim: keys.size("head_dim")?.unwrap_or(dim / n_heads.max(1)),
            ffn_dim: keys.required_size("intermediate_size")?,
            vocab_size: keys.required_size("vocab_size")?,
            norm_eps: keys.number("rms_norm_eps")?.unwrap_or(DEFAULT_NORM_EPS),
            rope_theta,
            rope_scaling: scaling.map(rope_scaling).transpose()?,
            tie_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            max_seq_len: keys.size("max_position_embeddings")?.unwrap_or(DEFAULT_MAX_SEQ_LEN),
        };
        match config.validate().into_iter().next() {
            None => Ok(config),
            Some(problem) => Err(keys.problem(problem)),
        }
    }

    fn to_json(&self, dtype: HostDtype) -> Value {
        let scaling = self.rope_scaling.map(|scaling| {
            json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            })
        });
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "max_position_embeddings": self.max_seq_len,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.n_heads,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": rope_parameters(self.rope_theta, scaling.as_ref()),
            "rope_scaling": scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_embeddings,
            "torch_dtype": dtype_name(dtype),
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }

    fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        parameter_shapes(&model::<FusedAttention>(self))
    }
}

fn rope_scaling(keys: Keys<'_>) -> Result<RopeScaling, ModelFolderError> {
    Ok(RopeScaling {
        factor: keys.required_number("factor")?,
        low_freq_factor: keys.required_number("low_freq_factor")?,
        high_freq_factor: keys.required_number("high_freq_factor")?,
        original_max_position_embeddings: keys.required_size("original_max_position_embeddings")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &Value) -> Result<LlamaConfig, String> {
        LlamaConfig::from_json(json, Path::new("config.json")).map_err(|error| error.to_string())
    }

    /// Llama 3.2 1B as it was published (old style), as far as it matters here.
    fn old_style() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false, "head_dim": 64,
            "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
            "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
            "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
                "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256,
        })
    }

    #[test]
    fn both_styles_give_the_published_config() {
        let published = LlamaConfig::flavor("1b").unwrap();
        let mut json = old_style();
        assert_eq!(read(&json).unwrap(), published);
        // `type` is the older name of `rope_type`.
        let scaling = json["rope_scaling"].as_object_mut().unwrap();
        let kind = scaling.remove("rope_type").unwrap();
        scaling.insert("type".into(), kind);
        assert_eq!(read(&json).unwrap(), published);
        let mut parameters = old_style()["rope_scaling"].clone();
        parameters["rope_theta"] = json!(500000.0);
        let object = json.as_object_mut().unwrap();
        object.remove("rope_scaling");
        object.remove("rope_theta");
        object.insert("rope_parameters".into(), parameters);
        assert_eq!(read(&json).unwrap(), published);
    }

    #[test]
    fn every_flavor_survives_the_way_there_and_back() {
        for flavor in LlamaConfig::FLAVORS {
            let config = LlamaConfig::flavor(flavor).unwrap();
            let json = config.to_json(HostDtype::BF16);
            assert_eq!(read(&json).unwrap(), config, "{flavor}");
            assert_eq!(json["torch_dtype"], "bfloat16");
            let mut old = json.clone();
            old.as_object_mut().unwrap().remove("rope_parameters");
            assert_eq!(read(&old).unwrap(), config, "{flavor}");
        }
        let plain = LlamaConfig { rope_scaling: None, ..LlamaConfig::flavor("8b").unwrap() };
        assert_eq!(read(&plain.to_json(HostDtype::F32)).unwrap(), plain);
    }

    #[test]
    fn absent_keys_take_the_defaults_of_transformers() {
        let mut json = old_style();
        for key in ["head_dim", "num_key_value_heads", "rms_norm_eps", "rope_scaling", "rope_theta"]
        {
            json.as_object_mut().unwrap().remove(key);
        }
        let config = read(&json).unwrap();
        assert_eq!((config.head_dim, config.n_kv_heads), (64, 32));
        assert_eq!((config.norm_eps, config.rope_theta), (1e-6, 10_000.0));
        assert_eq!(config.rope_scaling, None);
    }

    #[test]
    fn what_ours_does_not_do_is_refused() {
        let cases = [
            (
                "architectures",
                json!(["MistralForCausalLM"]),
                "is [\"MistralForCausalLM\"]: only LlamaForCausalLM is supported here",
            ),
            ("attention_bias", json!(true), "is true: only false is supported"),
            ("mlp_bias", json!(true), "is true: only false is supported"),
            ("hidden_act", json!("gelu"), "is \"gelu\": only \"silu\" is supported"),
            ("partial_rotary_factor", json!(0.5), "is 0.5: only 1.0 is supported"),
            ("sliding_window", json!(4096), "is 4096: only null is supported"),
            ("quantization_config", json!({}), "is {}: only null is supported"),
            ("hidden_size", json!(null), "is missing: expected a whole number"),
            ("hidden_size", json!(-1), "is -1: expected a whole number of at least 0"),
            ("vocab_size", json!("many"), "is \"many\": expected a whole number of at least 0"),
            ("rms_norm_eps", json!([]), "is []: expected a number"),
            ("rms_norm_eps", json!(0.0), "is 0: expected a number above 0"),
            ("num_hidden_layers", json!(1_000_000_000), "is 1000000000: expected at most 10000"),
            ("tie_word_embeddings", json!(1), "is 1: expected true or false"),
            ("rope_scaling", json!(8), "is 8: expected an object"),
            (
                "num_key_value_heads",
                json!(5),
                "is 5: expected a divisor of n_heads (32), so that each serves equally many",
            ),
        ];
        for (key, value, problem) in cases {
            let mut json = old_style();
            json[key] = value;
            assert_eq!(read(&json).unwrap_err(), format!("config.json: key `{key}` {problem}"));
        }
        let mut json = old_style();
        json["rope_scaling"] = json!({"type": "yarn", "factor": 4.0});
        assert_eq!(
            read(&json).unwrap_err(),
            "config.json: key `rope_scaling.type` is \"yarn\": only \"default\" and \"llama3\" are \
             supported"
        );
        json["rope_parameters"] = json!({"rope_type": "llama3", "rope_theta": 5e5});
        assert_eq!(
            read(&json).unwrap_err(),
            "config.json: key `rope_parameters.factor` is missing: expected a number"
        );
        json["rope_parameters"] = json!({"rope_type": 3});
        assert!(read(&json).unwrap_err().contains("`rope_parameters.rope_type` is 3: only"));
        for not_an_object in [json!([]), json!(null), json!(7)] {
            let message = read(&not_an_object).unwrap_err();
            assert_eq!(
                message,
                "config.json: key `architectures` is missing: expected [\"LlamaForCausalLM\"]"
            );
        }
    }
}
