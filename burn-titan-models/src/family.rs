//! A family of models as the platform sees it.

use std::collections::BTreeMap;
use std::path::Path;

use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::config::nearest;
use burn_titan_core::hf::{DEFAULT_MAX_SHARD_BYTES, HfFolder};
use burn_titan_core::model::{FieldProblem, HfExtras, HfWeights, Model, ModelError, ModelFamily};
use serde_json::{Map, Value};

use crate::config::{ConfigProblem, ModelConfig};
use crate::hf::{self, HuggingFace};

/// A family of models whose sizes are a `C`, with the attention modules that its blocks can use.
pub struct Family<C> {
    /// What makes the model, by the names that `model.attention` picks them by.
    models: BTreeMap<String, fn(&C) -> Model>,
}

impl<C: ModelConfig> Family<C> {
    /// A family of models as `model` makes them, with an attention that is called `fused`.
    pub fn new(model: fn(&C) -> Model) -> Self {
        Self { models: BTreeMap::new() }.with_model("fused", model)
    }

    /// Adds models with another attention; those of the same name are replaced.
    pub fn with_model(mut self, attention: &str, model: fn(&C) -> Model) -> Self {
        self.models.insert(attention.into(), model);
        self
    }
}

impl<C: HuggingFace> ModelFamily for Family<C> {
    fn name(&self) -> &str {
        C::FAMILY
    }

    fn flavors(&self) -> Vec<String> {
        C::FLAVORS.iter().map(ToString::to_string).collect()
    }

    fn attentions(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    fn resolve(
        &self,
        flavor: &str,
        overrides: &Map<String, Value>,
    ) -> Result<Value, Vec<FieldProblem>> {
        let Some(config) = C::flavor(flavor) else {
            let message = format!("{} has no flavor `{flavor}`", C::FAMILY);
            let hint = suggestion(flavor, C::FLAVORS.iter().copied());
            return Err(vec![problem("model.flavor", message, hint)]);
        };
        self.change(&config.to_value(), overrides)
    }

    fn change(
        &self,
        base: &Value,
        overrides: &Map<String, Value>,
    ) -> Result<Value, Vec<FieldProblem>> {
        let family = C::FAMILY;
        let mut problems = Vec::new();
        let mut fields = base.as_object().cloned().unwrap_or_default();
        for (name, value) in overrides {
            let key = format!("model.overrides.{name}");
            if !fields.contains_key(name) {
                let hint = suggestion(name, fields.keys().map(String::as_str));
                problems.push(problem(&key, format!("{family} has no field `{name}`"), hint));
                continue;
            }
            // Each field is tried alone, so that a wrong value is told of its own field.
            let mut one = base.clone();
            one[name] = value.clone();
            match C::deserialize(one) {
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
        if !problems.is_empty() {
            return Err(problems);
        }
        // Numbers as the family writes them: 0 for a fraction is 0.0.
        let changed = parse::<C>(&Value::Object(fields));
        let changed = changed.map_err(|e| vec![problem("model.overrides", e.to_string(), None)])?;
        Ok(changed.to_value())
    }

    fn build(&self, config: &Value, attention: &str) -> Result<Model, Vec<FieldProblem>> {
        let config: C = parse(config).map_err(|e| vec![problem("model", e.to_string(), None)])?;
        let size = |p: ConfigProblem| {
            let key = format!("model.overrides.{}", p.field);
            problem(&key, format!("`{}` {}", p.field, p.message), None)
        };
        let mut problems: Vec<FieldProblem> = config.validate().into_iter().map(size).collect();
        let model = self.models.get(attention);
        if model.is_none() {
            let message = format!("no attention module is registered as `{attention}`");
            let hint = suggestion(attention, self.models.keys().map(String::as_str));
            problems.push(problem("model.attention", message, hint));
        }
        match model {
            Some(model) if problems.is_empty() => Ok(model(&config)),
            _ => Err(problems),
        }
    }

    fn recognises(&self, hf_config: &Value) -> bool {
        hf::architectures::<C>().any(|(architecture, model_type)| {
            let is_it = |name: &Value| name == architecture;
            hf_config["architectures"].as_array().is_some_and(|list| list.iter().any(is_it))
                || hf_config["model_type"] == model_type
        })
    }

    fn config_from_hf(&self, folder: &HfFolder) -> Result<Value, ModelError> {
        Ok(hf::read_config::<C>(folder)?.to_value())
    }

    fn weights_from_hf<'a>(
        &self,
        config: &Value,
        folder: &'a HfFolder,
    ) -> Result<HfWeights<'a>, ModelError> {
        let weights = hf::read_parameters::<C>(folder, &parse(config)?)?;
        Ok(Box::new(weights.map(|weight| Ok(weight?))))
    }

    fn write_hf(
        &self,
        config: &Value,
        path: &Path,
        parameters: &mut dyn Iterator<Item = Result<HostTensor, ModelError>>,
        extras: &HfExtras<'_>,
    ) -> Result<(), ModelError> {
        let config: C = parse(config)?;
        hf::write_folder(path, &config, parameters, extras, DEFAULT_MAX_SHARD_BYTES)
    }
}

/// The sizes that [`ModelFamily::resolve`] gave.
fn parse<C: ModelConfig>(config: &Value) -> Result<C, ModelError> {
    let wrong = |e| ModelError::new(format!("this is no config of a {} model: {e}", C::FAMILY));
    C::deserialize(config).map_err(wrong)
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
