//! Families of models, registered by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use super::experts::{ExpertRank, Experts, ParameterRole};
use super::initial::Initial;
use super::tensor_plan::{Cut, PlanError, TensorPlan, TensorRank};
use super::unit::{ParameterSpec, Unit};
use crate::checkpoint::HostTensor;
use crate::hf::HfFolder;

/// A problem with a key of the run's config that only the model knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldProblem {
    /// Key of the config, for example `model.overrides.n_heads`.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// A model of fixed sizes: skeleton units, and facts about them. Holds no tensor.
pub struct Model {
    /// The resolved sizes, as the family reads them back.
    pub config: Value,
    /// Names of those fields that say how the model is trained: another value of one does not make it another model.
    pub training_fields: &'static [&'static str],
    /// The units, in the order in which they run.
    pub units: Vec<Box<dyn Unit>>,
    /// Token ids that the model knows.
    pub vocab_size: usize,
    /// Longest sequence that the model is made for, in tokens.
    pub max_seq_len: usize,
    /// Width of the hidden states between units.
    pub dim: usize,
    /// Layers, heads times head_dim: for the FLOPs of attention.
    pub attention_width: usize,
    /// Distribution of a parameter's initial values.
    pub initial: Box<dyn Fn(&ParameterSpec) -> Initial + Send + Sync>,
    /// Name of the embedding's parameter, which costs no FLOPs unless it is the head's too.
    pub embedding: &'static str,
    /// How the parameters lie on the ranks of the axis `tp`, or why they cannot be split; asked where there are some.
    pub tensor_plan: Box<dyn Fn() -> Result<TensorPlan, PlanError> + Send + Sync>,
    /// What a parameter of this name is for.
    pub role: Box<dyn Fn(&str) -> ParameterRole + Send + Sync>,
    /// The experts, where it has some.
    pub experts: Option<Experts>,
    /// Whether the attention may run on a share of each sequence: it calls [`super::Context::attention`].
    pub shares_sequences: bool,
}

impl Model {
    /// The first field in which another config, as [`Model::config`] has them, is of another model: its name, the value
    /// there, and the value here.
    pub fn first_difference(&self, other: &Value) -> Option<(String, String, String)> {
        self.differing_field(other, |field| !self.training_fields.contains(&field))
    }

    /// The first of the fields that count in which another config differs.
    pub(crate) fn differing_field(
        &self,
        other: &Value,
        counts: impl Fn(&str) -> bool,
    ) -> Option<(String, String, String)> {
        let (theirs, ours) = (other.as_object()?, self.config.as_object()?);
        let differs =
            |(key, value): &(&String, &Value)| counts(key) && ours.get(*key) != Some(*value);
        let (key, value) = theirs.iter().find(differs)?;
        let here = ours.get(key).map_or("nothing".into(), Value::to_string);
        Some((key.clone(), value.to_string(), here))
    }

    /// The parameters, each once: a tied one belongs to the first unit that has it.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let mut seen = std::collections::HashSet::new();
        self.units
            .iter()
            .flat_map(|unit| unit.parameters())
            .filter(|spec| seen.insert(spec.name.clone()))
            .collect()
    }

    /// The part of each parameter that a rank of `tp` and of `ep` has, in the order of [`Model::parameters`].
    ///
    /// # Errors
    /// If the model's plan does not fit its parameters, or the number of ranks.
    pub fn cuts(&self, tensor: TensorRank, expert: ExpertRank) -> Result<Vec<Cut>, PlanError> {
        let parameters = self.parameters();
        let by_plan = |spec: &&ParameterSpec| match (self.role)(&spec.name) {
            ParameterRole::Dense => true,
            ParameterRole::Expert => !expert.deals(),
            ParameterRole::RouterBias => false,
        };
        let whole = |spec: &ParameterSpec| Cut::whole(&spec.shape);
        let planned: Vec<ParameterSpec> = parameters.iter().filter(by_plan).cloned().collect();
        let planned = match tensor.ranks {
            1 => planned.iter().map(whole).collect(),
            _ => (self.tensor_plan)()?.cuts(&planned, tensor)?,
        };
        let mut planned = planned.into_iter();
        let cut = |spec: &ParameterSpec| match (self.role)(&spec.name) {
            ParameterRole::RouterBias => Ok(Cut { holders: 0..tensor.ranks, ..whole(spec) }),
            ParameterRole::Expert if expert.deals() => expert.cut(spec, tensor),
            _ => Ok(planned.next().unwrap_or_else(|| whole(spec))),
        };
        parameters.iter().map(cut).collect()
    }

    /// Elements of all parameters.
    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(|spec| spec.elements() as u64).sum()
    }

    /// Elements of a unit's parameters that a token meets: of experts, those that are chosen for it.
    pub fn active_elements(&self, unit: &dyn Unit) -> f64 {
        let share = |name: &str| match (&self.experts, (self.role)(name)) {
            (Some(experts), ParameterRole::Expert) => experts.met as f64 / experts.each as f64,
            (_, ParameterRole::RouterBias) => 0.0,
            _ => 1.0,
        };
        unit.parameters().iter().map(|spec| share(&spec.name) * spec.elements() as f64).sum()
    }

    /// Floating-point operations of forward and backward for one token of a sequence of `seq_len`
    /// tokens: `6 (active parameters - embedding) + 12 layers dim seq_len`, torchtitan's formula, which counts
    /// causal attention whole.
    pub fn flops_per_token(&self, seq_len: usize) -> f64 {
        let embedding: usize = self
            .units
            .first()
            .map(|unit| unit.parameters())
            .unwrap_or_default()
            .iter()
            .filter(|spec| spec.name == self.embedding)
            .map(ParameterSpec::elements)
            .sum();
        let all: f64 = self.units.iter().map(|unit| self.active_elements(&**unit)).sum();
        6.0 * (all - embedding as f64) + 12.0 * self.attention_width as f64 * seq_len as f64
    }
}

/// What a family of models has to say against a config, a folder or a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelError(String);

impl ModelError {
    /// An error with the message of another.
    pub fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ModelError {}

/// Weights as they are read from a Hugging Face folder.
pub type HfWeights<'a> = Box<dyn Iterator<Item = Result<HostTensor, ModelError>> + 'a>;

/// What goes into a Hugging Face folder beside the weights and the sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HfExtras<'a> {
    /// The token that begins a document, for `config.json`.
    pub bos_token_id: Option<u32>,
    /// The token that ends a document, for `config.json`.
    pub eos_token_id: Option<u32>,
    /// Names and contents of further files, `tokenizer.json` for example.
    pub files: &'a [(&'a str, &'a [u8])],
}

/// A family of models: its flavors, how it is built, and its Hugging Face names.
pub trait ModelFamily: Send + Sync {
    /// The name in `model.name`.
    fn name(&self) -> &str;

    /// The names in `model.flavor`.
    fn flavors(&self) -> Vec<String>;

    /// The names in `model.attention`.
    fn attentions(&self) -> Vec<String>;

    /// The sizes of a flavor with some fields changed.
    ///
    /// # Errors
    /// Every problem, each with the key of the run's config that it is about.
    fn resolve(
        &self,
        flavor: &str,
        overrides: &Map<String, Value>,
    ) -> Result<Value, Vec<FieldProblem>>;

    /// These sizes, as [`ModelFamily::resolve`] or [`ModelFamily::config_from_hf`] gave them, with some fields changed.
    ///
    /// # Errors
    /// Every problem, each with the key of the run's config that it is about.
    fn change(
        &self,
        config: &Value,
        overrides: &Map<String, Value>,
    ) -> Result<Value, Vec<FieldProblem>>;

    /// The model of these sizes, as [`ModelFamily::resolve`] or [`Model::config`] gave them.
    ///
    /// # Errors
    /// Every problem, each with the key of the run's config that it is about.
    fn build(&self, config: &Value, attention: &str) -> Result<Model, Vec<FieldProblem>>;

    /// Whether a Hugging Face `config.json` is of this family.
    fn recognises(&self, hf_config: &Value) -> bool;

    /// The sizes of a Hugging Face model.
    ///
    /// # Errors
    /// What the folder asks for that this family does not do.
    fn config_from_hf(&self, folder: &HfFolder) -> Result<Value, ModelError>;

    /// The weights of a Hugging Face model, under our names and in our layout.
    ///
    /// # Errors
    /// Tensors that are missing, unknown or of the wrong shape.
    fn weights_from_hf<'a>(
        &self,
        config: &Value,
        folder: &'a HfFolder,
    ) -> Result<HfWeights<'a>, ModelError>;

    /// Writes a Hugging Face folder out of our parameters and what goes with them.
    ///
    /// # Errors
    /// Parameters that are missing or not of the family; a disk that refuses.
    fn write_hf(
        &self,
        config: &Value,
        path: &Path,
        parameters: &mut dyn Iterator<Item = Result<HostTensor, ModelError>>,
        extras: &HfExtras<'_>,
    ) -> Result<(), ModelError>;
}

/// The families that a binary knows.
#[derive(Default)]
pub struct Registry {
    families: BTreeMap<String, Box<dyn ModelFamily>>,
}

impl Registry {
    /// Adds a family; one of the same name is replaced.
    pub fn with(mut self, family: impl ModelFamily + 'static) -> Self {
        self.families.insert(family.name().into(), Box::new(family));
        self
    }

    /// The family of a name.
    pub fn get(&self, name: &str) -> Option<&dyn ModelFamily> {
        self.families.get(name).map(AsRef::as_ref)
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.families.keys().map(String::as_str).collect()
    }

    /// The family of a Hugging Face `config.json`.
    pub fn recognise(&self, hf_config: &Value) -> Option<&dyn ModelFamily> {
        self.families.values().map(AsRef::as_ref).find(|family| family.recognises(hf_config))
    }
}
