//! What families of models answer the platform in the same way.

use std::collections::BTreeMap;

use burn::tensor::Device;
use burn_titan_core::config::nearest;
use burn_titan_core::model::{FieldProblem, ModelError, PlanError, TensorPlan, Unit};
use serde_json::{Map, Value};

use crate::config::ModelConfig;

/// What depends on the attention module, of a family whose sizes are a `C`.
pub struct Blocks<C> {
    /// The units of a model.
    pub units: fn(&C, &Device) -> Vec<Box<dyn Unit>>,
    /// How its parameters are split.
    pub tensor_plan: fn(&C, &Device) -> Result<TensorPlan, PlanError>,
    /// Whether it may run where ranks share each sequence.
    pub shares_sequences: bool,
}

/// The attention modules that a family's blocks can use, by the names that `model.attention` picks them by.
pub struct Attentions<C> {
    by_name: BTreeMap<String, Blocks<C>>,
}

impl<C> Default for Attentions<C> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new() }
    }
}

impl<C: ModelConfig> Attentions<C> {
    /// Adds one; one of the same name is replaced.
    pub fn insert(&mut self, name: &str, blocks: Blocks<C>) {
        self.by_name.insert(name.into(), blocks);
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }

    /// The sizes that `config` says, and what depends on the attention of this name.
    ///
    /// # Errors
    /// Every problem with either, as [`burn_titan_core::model::ModelFamily::build`] gives them.
    pub fn check(
        &self,
        config: &Value,
        attention: &str,
    ) -> Result<(C, &Blocks<C>), Vec<FieldProblem>> {
        let config: C = parse(config).map_err(|e| vec![problem("model", e.to_string(), None)])?;
        let size = |p: crate::config::ConfigProblem| {
            let key = format!("model.overrides.{}", p.field);
            problem(&key, format!("`{}` {}", p.field, p.message), None)
        };
        let mut problems: Vec<FieldProblem> = config.validate().into_iter().map(size).collect();
        let blocks = self.by_name.get(attention);
        if blocks.is_none() {
            let message = format!("no attention module is registered as `{attention}`");
            let hint = suggestion(attention, self.by_name.keys().map(String::as_str));
            problems.push(problem("model.attention", message, hint));
        }
        match blocks {
            Some(blocks) if problems.is_empty() => Ok((config, blocks)),
            _ => Err(problems),
        }
    }
}

/// The sizes of a flavor with some fields changed.
///
/// # Errors
/// Every problem, each with the key of the run's config that it is about.
pub fn resolve<C: ModelConfig>(
    flavor: &str,
    overrides: &Map<String, Value>,
) -> Result<Value, Vec<FieldProblem>> {
    let family = C::FAMILY;
    let Some(config) = C::flavor(flavor) else {
        let message = format!("{family} has no flavor `{flavor}`");
        let hint = suggestion(flavor, C::FLAVORS.iter().copied());
        return Err(vec![problem("model.flavor", message, hint)]);
    };
    let base = serde_json::to_value(config).unwrap_or(Value::Null);
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
    if problems.is_empty() { Ok(Value::Object(fields)) } else { Err(problems) }
}

/// The names in `model.flavor`.
pub fn flavors<C: ModelConfig>() -> Vec<String> {
    C::FLAVORS.iter().map(ToString::to_string).collect()
}

/// The sizes that [`resolve`] gave.
///
/// # Errors
/// If they are not of this family.
pub fn parse<C: ModelConfig>(config: &Value) -> Result<C, ModelError> {
    C::deserialize(config)
        .map_err(|e| ModelError::new(format!("this is no config of a {} model: {e}", C::FAMILY)))
}

/// Whether a Hugging Face `config.json` is of this architecture, or of this type.
pub fn is_architecture(hf_config: &Value, architecture: &str, model_type: &str) -> bool {
    let is_it = |name: &Value| name == architecture;
    hf_config["architectures"].as_array().is_some_and(|list| list.iter().any(is_it))
        || hf_config["model_type"] == model_type
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
