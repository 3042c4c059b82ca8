//! `config.json` of a Hugging Face model: its keys, and its two styles of RoPE.
//!
//! Up to transformers 4, the RoPE base is `rope_theta` at the top, and `rope_scaling` (null, or an
//! object with `rope_type` or `type`) holds the scaling. From transformers 5, both are in
//! `rope_parameters`. Reading takes either; writing writes both, so that any version reads it.

use std::path::Path;

use burn_titan_core::checkpoint::HostDtype;
use serde_json::{Map, Value, json};

use super::{HuggingFace, ModelFolderError, architectures};
use crate::config::ConfigProblem;

/// The base of RoPE that `transformers` takes where the key is absent.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// A JSON object and where it is, for errors.
pub struct Keys<'a> {
    json: &'a Value,
    path: &'a Path,
    /// Key of the object itself, with a dot; empty at the top.
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    /// The keys of a `config.json`; `path` is named in errors.
    pub fn new(json: &'a Value, path: &'a Path) -> Self {
        Self { json, path, prefix: "" }
    }

    /// The value of `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, problem: String) -> ModelFolderError {
        let key = format!("{}{key}", self.prefix);
        ModelFolderError::Config { path: self.path.to_path_buf(), key, problem }
    }

    /// An error about the key that gives a field of ours.
    pub fn problem(&self, problem: ConfigProblem) -> ModelFolderError {
        let key = match problem.field {
            "dim" => "hidden_size",
            "n_layers" => "num_hidden_layers",
            "n_heads" => "num_attention_heads",
            "n_kv_heads" => "num_key_value_heads",
            "ffn_dim" => "intermediate_size",
            "n_experts" => "num_experts",
            "top_k" => "num_experts_per_tok",
            "expert_dim" => "moe_intermediate_size",
            "norm_eps" => "rms_norm_eps",
            "max_seq_len" => "max_position_embeddings",
            same => same,
        };
        self.error(key, problem.message)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelFolderError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(key, format!("is {value}: expected {expected}"))),
        }
    }

    /// A whole number of at least 0.
    ///
    /// # Errors
    /// If it is something else; so with the others.
    pub fn size(&self, key: &str) -> Result<Option<usize>, ModelFolderError> {
        let convert = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
        self.typed(key, "a whole number of at least 0", convert)
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, ModelFolderError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelFolderError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn object(&self, key: &'static str) -> Result<Option<Self>, ModelFolderError> {
        let prefix = if key == "rope_scaling" { "rope_scaling." } else { "rope_parameters." };
        let object: Option<&Map<String, Value>> = self.typed(key, "an object", Value::as_object)?;
        let json = object.and_then(|_| self.json.get(key));
        Ok(json.map(|json| Self { json, path: self.path, prefix }))
    }

    /// A whole number that must be there.
    pub fn required_size(&self, key: &str) -> Result<usize, ModelFolderError> {
        let missing = || self.error(key, "is missing: expected a whole number".into());
        self.size(key)?.ok_or_else(missing)
    }

    /// A number that must be there.
    pub fn required_number(&self, key: &str) -> Result<f64, ModelFolderError> {
        self.number(key)?.ok_or_else(|| self.error(key, "is missing: expected a number".into()))
    }

    /// Refuses a model of another architecture or type.
    ///
    /// # Errors
    /// If it is one.
    pub fn require<C: HuggingFace>(&self) -> Result<(), ModelFolderError> {
        let is_ours = |name: &Value| architectures::<C>().any(|(ours, _)| name == ours);
        let is_type = |kind: &Value| architectures::<C>().any(|(_, ours)| kind == ours);
        let ours: Vec<&str> = architectures::<C>().map(|(ours, _)| ours).collect();
        let ours = ours.join(" or ");
        match self.get("architectures") {
            Some(Value::Array(names)) if names.iter().any(is_ours) => Ok(()),
            Some(found) => {
                let problem = format!("is {found}: only {ours} is supported here");
                Err(self.error("architectures", problem))
            }
            None if self.get("model_type").is_some_and(is_type) => Ok(()),
            None => {
                let problem = format!("is missing: expected [\"{ours}\"]");
                Err(self.error("architectures", problem))
            }
        }
    }

    /// Refuses keys with other values than the only ones that a model of ours has.
    ///
    /// # Errors
    /// The first of them.
    pub fn refuse_others(&self, supported: &[(&str, Value)]) -> Result<(), ModelFolderError> {
        for (key, only) in supported {
            if let Some(found) = self.get(key).filter(|found| !same(found, only)) {
                return Err(self.error(key, format!("is {found}: only {only} is supported")));
            }
        }
        Ok(())
    }

    /// RoPE's base, and its scaling from either style: the object, where it is of the type `scaling`, or `None`,
    /// where it is `default`.
    ///
    /// # Errors
    /// If it is of another type, or partial.
    pub fn rope(&self, scaling: Option<&str>) -> Result<(f64, Option<Self>), ModelFolderError> {
        let top = self.number("rope_theta")?;
        let object = match self.object("rope_parameters")? {
            Some(object) => Some(object),
            None => self.object("rope_scaling")?,
        };
        let Some(keys) = object else { return Ok((top.unwrap_or(DEFAULT_ROPE_THETA), None)) };
        let theta = keys.number("rope_theta")?.or(top).unwrap_or(DEFAULT_ROPE_THETA);
        keys.refuse_others(&[("partial_rotary_factor", json!(1.0))])?;
        let key = if keys.get("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = keys.get(key);
        if kind.is_none_or(|kind| kind == "default") {
            return Ok((theta, None));
        }
        if kind.is_some_and(|kind| kind.as_str() == scaling) {
            return Ok((theta, Some(keys)));
        }
        let found = kind.cloned().unwrap_or_default();
        let problem = match scaling {
            Some(scaling) => {
                format!("is {found}: only \"default\" and \"{scaling}\" are supported")
            }
            None => format!("is {found}: only \"default\" is supported"),
        };
        Err(keys.error(key, problem))
    }
}

/// Equal, where 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

/// `rope_parameters` of a base and a `rope_scaling`.
pub fn rope_parameters(theta: f64, scaling: Option<&Value>) -> Value {
    let mut parameters = scaling.cloned().unwrap_or_else(|| json!({"rope_type": "default"}));
    parameters["rope_theta"] = json!(theta);
    parameters
}

/// What `torch_dtype` calls weights of this type.
pub fn dtype_name(dtype: HostDtype) -> &'static str {
    match dtype {
        HostDtype::BF16 => "bfloat16",
        HostDtype::F16 => "float16",
        HostDtype::F64 => "float64",
        _ => "float32",
    }
}
