//! Llama 3 as the platform sees it.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::config::nearest;
use burn_titan_core::hf::HfFolder;
use burn_titan_core::model::{
    FieldProblem, HfExtras, HfWeights, Model, ModelError, ModelFamily, ParameterRole, PlanError,
    TensorPlan, Unit,
};
use serde_json::{Map, Value};

use super::config::LlamaConfig;
use super::{hf, initial, modules, plan};
use crate::attention::{Attention, FusedAttention};

/// What depends on the attention module.
struct Blocks {
    units: fn(&LlamaConfig, &Device) -> Vec<Box<dyn Unit>>,
    tensor_plan: fn(&LlamaConfig, &Device) -> Result<TensorPlan, PlanError>,
    shares_sequences: bool,
}

/// The Llama 3 family, with the attention modules that its blocks can use.
pub struct Llama3 {
    attentions: BTreeMap<String, Blocks>,
}

impl Default for Llama3 {
    /// With [`FusedAttention`] as `fused`.
    fn default() -> Self {
        Self { attentions: BTreeMap::new() }.with_attention::<FusedAttention>("fused")
    }
}

impl Llama3 {
    /// Adds an attention module under the name that `model.attention` picks it by.
    pub fn with_attention<A: Attention>(mut self, name: &str) -> Self {
        let blocks = Blocks {
            units: modules::units::<A>,
            tensor_plan: plan::tensor_plan::<A>,
            shares_sequences: A::SHARES_SEQUENCES,
        };
        self.attentions.insert(name.into(), blocks);
        self
    }
}

fn problem(key: &str, message: String, hint: Option<String>) -> FieldProblem {
    FieldProblem { key: key.into(), message, hint }
}

/// "did you mean `8b`?", or the list of all.
fn suggestion<'a>(word: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    Some(match nearest(word, names.clone()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => {
            let all: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
            format!("expected one of {}", all.join(", "))
        }
    })
}

/// What a field holds, told from its value in a flavor; `None` for those that are no single value.
fn expected(flavor: &Value) -> Option<&'static str> {
    match flavor {
        Value::Bool(_) => Some("true or false"),
        Value::Number(number) if number.is_u64() => Some("a whole number of at least 0"),
        Value::Number(_) => Some("a number"),
        _ => None,
    }
}

fn parse(config: &Value) -> Result<LlamaConfig, ModelError> {
    LlamaConfig::deserialize_value(config)
        .map_err(|e| ModelError::new(format!("this is no config of a llama3 model: {e}")))
}

impl ModelFamily for Llama3 {
    fn name(&self) -> &str {
        "llama3"
    }

    fn flavors(&self) -> Vec<String> {
        LlamaConfig::FLAVORS.map(String::from).to_vec()
    }

    fn attentions(&self) -> Vec<String> {
        self.attentions.keys().cloned().collect()
    }

    fn resolve(
        &self,
        flavor: &str,
        overrides: &Map<String, Value>,
    ) -> Result<Value, Vec<FieldProblem>> {
        let Some(config) = LlamaConfig::flavor(flavor) else {
            let message = format!("llama3 has no flavor `{flavor}`");
            let hint = suggestion(flavor, LlamaConfig::FLAVORS);
            return Err(vec![problem("model.flavor", message, hint)]);
        };
        let base = config.to_value();
        let mut problems = Vec::new();
        let mut fields = base.as_object().cloned().unwrap_or_default();
        for (name, value) in overrides {
            let key = format!("model.overrides.{name}");
            if !fields.contains_key(name) {
                let hint = suggestion(name, fields.keys().map(String::as_str));
                problems.push(problem(&key, format!("llama3 has no field `{name}`"), hint));
                continue;
            }
            // Each field is tried alone, so that a wrong value is told of its own field.
            let mut one = base.clone();
            one[name] = value.clone();
            match LlamaConfig::deserialize_value(&one) {
                Ok(_) => drop(fields.insert(name.clone(), value.clone())),
                Err(e) => {
                    let message = match expected(&base[name]) {
                        Some(expected) => format!("`{name}`: expected {expected}, found {value}"),
                        None => format!("`{name}`: {e}"),
                    };
                    problems.push(problem(&key, message, None));
                }
            }
        }
        if problems.is_empty() { Ok(Value::Object(fields)) } else { Err(problems) }
    }

    fn build(&self, config: &Value, attention: &str) -> Result<Model, Vec<FieldProblem>> {
        let config = parse(config).map_err(|e| vec![problem("model", e.to_string(), None)])?;
        let mut problems: Vec<FieldProblem> = config
            .validate()
            .into_iter()
            .map(|p| {
                let key = format!("model.overrides.{}", p.field);
                problem(&key, format!("`{}` {}", p.field, p.message), None)
            })
            .collect();
        let blocks = self.attentions.get(attention);
        if blocks.is_none() {
            let message = format!("no attention module is registered as `{attention}`");
            let hint = suggestion(attention, self.attentions.keys().map(String::as_str));
            problems.push(problem("model.attention", message, hint));
        }
        let (Some(blocks), true) = (blocks, problems.is_empty()) else { return Err(problems) };
        let device = Device::flex();
        Ok(Model {
            config: config.to_value(),
            units: (blocks.units)(&config, &device),
            tensor_plan: {
                let (plan, config) = (blocks.tensor_plan, config.clone());
                Box::new(move || plan(&config, &Device::flex()))
            },
            role: Box::new(|_| ParameterRole::Dense),
            experts: None,
            shares_sequences: blocks.shares_sequences,
            vocab_size: config.vocab_size,
            max_seq_len: config.max_seq_len,
            dim: config.dim,
            attention_width: config.n_layers * config.n_heads * config.head_dim,
            embedding: "tok_embeddings.weight",
            initial: Box::new(move |spec| initial::initial(&config, spec)),
        })
    }

    fn recognises(&self, hf_config: &Value) -> bool {
        let is_llama = |v: &Value| v.as_str() == Some("LlamaForCausalLM");
        hf_config["architectures"].as_array().is_some_and(|list| list.iter().any(is_llama))
            || hf_config["model_type"].as_str() == Some("llama")
    }

    fn config_from_hf(&self, folder: &HfFolder) -> Result<Value, ModelError> {
        Ok(hf::read_config(folder).map_err(ModelError::new)?.to_value())
    }

    fn weights_from_hf<'a>(
        &self,
        config: &Value,
        folder: &'a HfFolder,
    ) -> Result<HfWeights<'a>, ModelError> {
        let weights = hf::read_parameters(folder, &parse(config)?).map_err(ModelError::new)?;
        Ok(Box::new(weights.map(|weight| weight.map_err(ModelError::new))))
    }

    fn write_hf(
        &self,
        config: &Value,
        path: &Path,
        parameters: &mut dyn Iterator<Item = Result<HostTensor, ModelError>>,
        extras: &HfExtras<'_>,
    ) -> Result<(), ModelError> {
        let limit = burn_titan_core::hf::DEFAULT_MAX_SHARD_BYTES;
        hf::write_folder(path, &parse(config)?, parameters, extras, limit)
    }
}
