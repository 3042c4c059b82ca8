//! `config.json` of a Hugging Face Qwen3 model.

use std::path::Path;

use burn_titan_core::checkpoint::HostDtype;
use serde_json::{Value, json};

use super::config::Qwen3Config;
use super::modules::model;
use crate::attention::FusedAttention;
use crate::config::ModelConfig;
use crate::hf::{
    ATTENTION, FEED_FORWARD, HuggingFace, Keys, ModelFolderError, NORMS, Names, QUERY_KEY_NORMS,
    dtype_name, parameter_shapes, rope_parameters,
};

/// Values that `transformers` takes for a Qwen3 model where the key is absent.
const DEFAULT_KV_HEADS: usize = 32;
const DEFAULT_HEAD_DIM: usize = 128;
const DEFAULT_NORM_EPS: f64 = 1e-6;
const DEFAULT_MAX_SEQ_LEN: usize = 32_768;

impl HuggingFace for Qwen3Config {
    const ARCHITECTURE: &'static str = "Qwen3ForCausalLM";
    const MODEL_TYPE: &'static str = "qwen3";
    const NAMES: Names =
        Names { model: "Qwen3", block: &[NORMS, ATTENTION, QUERY_KEY_NORMS, FEED_FORWARD] };

    /// Another architecture, biases, another activation, scaled or partial RoPE and layers with a sliding window are
    /// refused. A window that no layer uses (`use_sliding_window: false`) says nothing.
    fn from_json(json: &Value, path: &Path) -> Result<Self, ModelFolderError> {
        let keys = Keys::new(json, path);
        keys.require::<Self>()?;
        keys.refuse_others(&[
            ("hidden_act", json!("silu")),
            ("attention_bias", json!(false)),
            ("partial_rotary_factor", json!(1.0)),
            ("use_sliding_window", json!(false)),
            ("quantization_config", Value::Null),
        ])?;
        refuse_windows(&keys)?;
        let (rope_theta, _) = keys.rope(None)?;
        let config = Self {
            dim: keys.required_size("hidden_size")?,
            n_layers: keys.required_size("num_hidden_layers")?,
            n_heads: keys.required_size("num_attention_heads")?,
            n_kv_heads: keys.size("num_key_value_heads")?.unwrap_or(DEFAULT_KV_HEADS),
            head_dim: keys.size("head_dim")?.unwrap_or(DEFAULT_HEAD_DIM),
            ffn_dim: keys.required_size("intermediate_size")?,
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
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "max_position_embeddings": self.max_seq_len,
            "max_window_layers": self.n_layers,
            "model_type": "qwen3",
            "num_attention_heads": self.n_heads,
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

/// Refuses layers that are not of full attention.
fn refuse_windows(keys: &Keys<'_>) -> Result<(), ModelFolderError> {
    let full = |kind: &Value| kind == "full_attention";
    match keys.get("layer_types") {
        None => Ok(()),
        Some(Value::Array(kinds)) if kinds.iter().all(full) => Ok(()),
        Some(found) => {
            let problem = format!("is {found}: only \"full_attention\" is supported");
            Err(keys.error("layer_types", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use burn_titan_core::checkpoint::HostTensor;
    use burn_titan_core::hf::HfFolder;
    use burn_titan_core::model::HfExtras;
    use tempfile::tempdir;

    use super::*;
    use crate::hf::{read_config, read_parameters, write_folder};

    fn read(json: &Value) -> Result<Qwen3Config, String> {
        Qwen3Config::from_json(json, Path::new("config.json")).map_err(|error| error.to_string())
    }

    /// Qwen3-0.6B as it was published (old style).
    fn old_style() -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
            "initializer_range": 0.02, "intermediate_size": 3072,
            "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
            "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
            "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "use_cache": true, "use_sliding_window": false, "vocab_size": 151936,
        })
    }

    #[test]
    fn both_styles_give_the_published_config() {
        let published = Qwen3Config::flavor("0.6b").unwrap();
        let mut json = old_style();
        assert_eq!(read(&json).unwrap(), published);
        let object = json.as_object_mut().unwrap();
        object.remove("rope_theta");
        object.remove("rope_scaling");
        json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1000000.0});
        json["layer_types"] = json!(vec!["full_attention"; 28]);
        assert_eq!(read(&json).unwrap(), published);
    }

    #[test]
    fn every_flavor_survives_the_way_there_and_back() {
        for flavor in Qwen3Config::FLAVORS {
            let config = Qwen3Config::flavor(flavor).unwrap();
            let json = config.to_json(HostDtype::BF16);
            assert_eq!(read(&json).unwrap(), config, "{flavor}");
            let mut old = json.clone();
            old.as_object_mut().unwrap().remove("rope_parameters");
            assert_eq!(read(&old).unwrap(), config, "{flavor}");
        }
    }

    #[test]
    fn absent_keys_take_the_defaults_of_transformers() {
        let mut json = old_style();
        json["num_attention_heads"] = json!(64);
        for key in ["head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta"] {
            json.as_object_mut().unwrap().remove(key);
        }
        for key in ["tie_word_embeddings", "max_position_embeddings"] {
            json[key] = Value::Null;
        }
        let config = read(&json).unwrap();
        assert_eq!((config.head_dim, config.n_kv_heads), (128, 32));
        assert_eq!((config.norm_eps, config.rope_theta), (1e-6, 10_000.0));
        assert_eq!((config.tie_embeddings, config.max_seq_len), (false, 32_768));
    }

    #[test]
    fn what_ours_does_not_do_is_refused() {
        let cases = [
            (
                "architectures",
                json!(["Qwen3MoeForCausalLM"]),
                "architectures` is [\"Qwen3MoeForCausalLM\"]: only Qwen3ForCausalLM is supported here",
            ),
            ("attention_bias", json!(true), "attention_bias` is true: only false is supported"),
            (
                "use_sliding_window",
                json!(true),
                "use_sliding_window` is true: only false is supported",
            ),
            (
                "layer_types",
                json!(["full_attention", "sliding_attention"]),
                "layer_types` is [\"full_attention\",\"sliding_attention\"]: only \"full_attention\" is supported",
            ),
            (
                "rope_scaling",
                json!({"rope_type": "yarn", "factor": 4.0}),
                "rope_scaling.rope_type` is \"yarn\": only \"default\" is supported",
            ),
            ("hidden_size", json!(null), "hidden_size` is missing: expected a whole number"),
            (
                "num_key_value_heads",
                json!(5),
                "num_key_value_heads` is 5: expected a divisor of n_heads (16), so that each serves equally many",
            ),
        ];
        for (key, value, problem) in cases {
            let mut json = old_style();
            json[key] = value;
            assert_eq!(read(&json).unwrap_err(), format!("config.json: key `{problem}"));
        }
        let mut unused = old_style();
        unused["sliding_window"] = json!(4096);
        assert!(read(&unused).is_ok());
    }

    #[test]
    fn every_parameter_has_a_name_of_its_own() {
        let config = Qwen3Config { n_layers: 12, ..Qwen3Config::flavor("8b").unwrap() };
        let shapes = config.parameter_shapes();
        assert_eq!(shapes.len(), 3 + 12 * 11);
        let name = |name: &str| Qwen3Config::NAMES.hf_names(name, &[]).unwrap();
        let names: BTreeSet<String> = shapes.iter().flat_map(|(ours, _)| name(ours)).collect();
        assert_eq!(names.len(), shapes.len());
        assert_eq!(
            name("layers.11.attention.q_norm.weight"),
            ["model.layers.11.self_attn.q_norm.weight"]
        );
        assert!(shapes.contains(&("layers.3.attention.k_norm.weight".into(), vec![128])));
    }

    #[test]
    fn the_golden_folder_survives_the_way_there_and_back() {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3_tiny");
        let folder = HfFolder::open(&golden).unwrap();
        let config: Qwen3Config = read_config(&folder).unwrap();
        assert_eq!((config.dim, config.n_heads, config.head_dim), (64, 4, 32));
        assert_eq!((config.rope_theta, config.tie_embeddings), (1e6, true));
        let parameters: Vec<HostTensor> =
            read_parameters(&folder, &config).unwrap().collect::<Result<_, _>>().unwrap();
        let count: usize = parameters.iter().map(|p| p.shape().iter().product::<usize>()).sum();
        assert_eq!(count as u64, config.parameter_count());
        let out = tempdir().unwrap();
        let path = out.path().join("again");
        let parameters = parameters.into_iter().map(Ok::<_, ModelFolderError>);
        write_folder(&path, &config, parameters, &HfExtras::default(), u64::MAX).unwrap();
        let again = HfFolder::open(&path).unwrap();
        assert_eq!(read_config::<Qwen3Config>(&again).unwrap(), config);
        assert!(again.names().eq(folder.names()));
        for name in folder.names() {
            assert_eq!(again.read(name).unwrap(), folder.read(name).unwrap());
        }
    }
}
