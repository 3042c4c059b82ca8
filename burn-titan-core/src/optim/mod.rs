//! Optimizers on flat f32 parameters, chosen by groups of name patterns.
//!
//! State is keyed by parameter name, so that it survives any change of mesh or of construction order.

mod muon;
mod owners;

use std::collections::HashMap;

use burn::tensor::{Device, Tensor};
use burn_titan_kernels::{AdamwStep, adamw};
use burn_titan_parallel::{CommError, Communicator};
use thiserror::Error;

pub use muon::{MuonRule, muon_update};
use owners::Matrix;

use crate::checkpoint::{CheckpointError, DeferredTensor, HostTensor, Region, TensorError};
use crate::config::{NamePattern, OptimizerConfig, OptimizerKind};
use crate::executor::{GradientStore, Layout, LocalParameter, ParameterStore, on_device, on_host};
use crate::model::ParameterSpec;

/// The factor that scales gradients of norm `norm` down to `max_norm`: `min(1, max_norm / (norm +
/// 1e-6))`, as PyTorch's `clip_grad_norm_`; 1 if `max_norm` is 0.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

/// Why no optimizer can be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptimizerError {
    /// A pattern that no parameter's name matches.
    #[error("`{pattern}` matches no parameter; the model has, for example, `{example}`")]
    MatchesNothing {
        /// Place in the list.
        index: usize,
        /// The pattern.
        pattern: String,
        /// A parameter's name.
        example: String,
    },
    /// A pattern that is malformed.
    #[error("{message}")]
    Pattern {
        /// Place in the list.
        index: usize,
        /// What is wrong.
        message: String,
    },
    /// Muon on something that is no matrix.
    #[error(
        "Muon is for matrices, but `{name}` is {dims}-dimensional; give it `adamw` in optimizer.groups, for example `{{pattern: \"{name}\", name: adamw}}`"
    )]
    NotAMatrix {
        /// The parameter.
        name: String,
        /// Its number of dims.
        dims: usize,
    },
}

impl OptimizerError {
    /// The key of the run's config that it is about.
    pub fn key(&self) -> String {
        match self {
            Self::MatchesNothing { index, .. } | Self::Pattern { index, .. } => {
                format!("optimizer.groups[{index}].pattern")
            }
            Self::NotAMatrix { .. } => "optimizer".into(),
        }
    }
}

/// What applies to one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterRule {
    /// Its optimizer.
    pub kind: OptimizerKind,
    /// Its peak learning rate.
    pub lr: f64,
    /// Its weight decay.
    pub weight_decay: f64,
}

/// What applies to each parameter, by name: the first group whose pattern matches, else the defaults.
///
/// # Errors
/// A malformed pattern, one that matches nothing, or Muon on a parameter that is no matrix.
pub fn parameter_rules(
    config: &OptimizerConfig,
    parameters: &[ParameterSpec],
) -> Result<HashMap<String, ParameterRule>, OptimizerError> {
    let mut patterns = Vec::new();
    for (index, group) in config.groups.iter().enumerate() {
        let pattern = NamePattern::parse(&group.pattern)
            .map_err(|e| OptimizerError::Pattern { index, message: e.to_string() })?;
        if !parameters.iter().any(|spec| pattern.matches(&spec.name)) {
            return Err(OptimizerError::MatchesNothing {
                index,
                pattern: group.pattern.clone(),
                example: parameters.last().map(|spec| spec.name.clone()).unwrap_or_default(),
            });
        }
        patterns.push((pattern, group));
    }
    let mut rules = HashMap::new();
    for spec in parameters {
        let group = patterns.iter().find(|(p, _)| p.matches(&spec.name)).map(|(_, group)| *group);
        let rule = ParameterRule {
            kind: group.and_then(|g| g.name).unwrap_or(config.name),
            lr: group.and_then(|g| g.lr).unwrap_or(config.lr),
            weight_decay: group.and_then(|g| g.weight_decay).unwrap_or(config.weight_decay),
        };
        if rule.kind == OptimizerKind::Muon && spec.shape.len() != 2 {
            return Err(OptimizerError::NotAMatrix {
                name: spec.name.clone(),
                dims: spec.shape.len(),
            });
        }
        rules.insert(spec.name.clone(), rule);
    }
    Ok(rules)
}

/// What a step scales.
#[derive(Clone, Copy)]
struct Scale {
    lr: f64,
    gradient: f64,
}

enum State {
    Adamw { exp_avg: Tensor<1>, exp_avg_sq: Tensor<1> },
    Muon { momentum: Tensor<1> },
}

/// The optimizer of all parameters of a run.
pub struct Optimizer {
    config: OptimizerConfig,
    rules: HashMap<String, ParameterRule>,
    states: HashMap<String, State>,
    /// Updates so far, for AdamW's bias correction.
    updates: u64,
}

impl Optimizer {
    /// An optimizer with empty state.
    ///
    /// # Errors
    /// As [`parameter_rules`].
    pub fn new(
        config: &OptimizerConfig,
        parameters: &[ParameterSpec],
    ) -> Result<Self, OptimizerError> {
        let rules = parameter_rules(config, parameters)?;
        Ok(Self { config: config.clone(), rules, states: HashMap::new(), updates: 0 })
    }

    /// Updates all parameters that have a gradient. `lr_factor` scales the peak learning rates,
    /// `gradient_scale` the gradients, which are consumed. `shard` are the ranks that share the parameters.
    ///
    /// # Errors
    /// If an exchange between them fails.
    pub fn step(
        &mut self,
        parameters: &mut ParameterStore,
        gradients: &mut GradientStore,
        lr_factor: f64,
        gradient_scale: f64,
        shard: &dyn Communicator,
    ) -> Result<(), CommError> {
        self.updates += 1;
        let scale = Scale { lr: lr_factor, gradient: gradient_scale };
        self.muon_step(parameters, gradients, scale, shard)?;
        self.adamw_step(parameters, gradients, scale);
        Ok(())
    }

    fn adamw_step(
        &mut self,
        parameters: &mut ParameterStore,
        gradients: &mut GradientStore,
        scale: Scale,
    ) {
        for parameter in parameters.iter_mut() {
            let name = parameter.name().to_string();
            let rule = self.rules[&name];
            if rule.kind != OptimizerKind::Adamw {
                continue;
            }
            let Some(gradient) = gradients.take(&name) else { continue };
            let step = AdamwStep {
                lr: rule.lr * scale.lr,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay: rule.weight_decay,
                step: self.updates,
                gradient_scale: scale.gradient,
            };
            let state = self.states.remove(&name);
            let mut next = None;
            parameter.update(|value| {
                let (exp_avg, exp_avg_sq) = match state {
                    Some(State::Adamw { exp_avg, exp_avg_sq }) => (exp_avg, exp_avg_sq),
                    _ => (value.zeros_like(), value.zeros_like()),
                };
                let [value, exp_avg, exp_avg_sq] =
                    adamw(value, gradient, exp_avg, exp_avg_sq, step);
                next = Some(State::Adamw { exp_avg, exp_avg_sq });
                value
            });
            self.states.extend(next.map(|state| (name, state)));
        }
    }

    fn muon_step(
        &mut self,
        parameters: &mut ParameterStore,
        gradients: &mut GradientStore,
        scale: Scale,
        shard: &dyn Communicator,
    ) -> Result<(), CommError> {
        let is_due = |spec: &&ParameterSpec| {
            self.rules[&spec.name].kind == OptimizerKind::Muon && gradients.has(&spec.name)
        };
        let specs = parameters.layout().parameters().map(|local| &local.spec);
        let due: Vec<ParameterSpec> = specs.filter(is_due).cloned().collect();
        // One rank takes one matrix after the other; several exchange all of them at once.
        let together = if shard.size() == 1 { 1 } else { due.len().max(1) };
        for specs in due.chunks(together) {
            let matrix = |spec: &ParameterSpec| {
                let rule = self.muon_rule(&spec.name, scale);
                let gradient = gradients.take(&spec.name);
                let update = gradient.map(|g| self.momentum(spec, g * scale.gradient, &rule));
                Matrix { spec: spec.clone(), rule, update }
            };
            let matrices: Vec<Matrix> = specs.iter().map(matrix).collect();
            let (layout, device) = (parameters.layout(), parameters.device());
            let directions = owners::directions(matrices, layout, shard, device)?;
            for (spec, direction) in specs.iter().zip(directions) {
                let rule = self.muon_rule(&spec.name, scale);
                if let (Some(parameter), Some(direction)) =
                    (parameters.get_mut(&spec.name), direction)
                {
                    parameter.update(|value| muon::moved(value, direction, &rule));
                }
            }
        }
        Ok(())
    }

    fn muon_rule(&self, name: &str, scale: Scale) -> MuonRule {
        let rule = self.rules[name];
        MuonRule {
            lr: rule.lr * scale.lr,
            weight_decay: rule.weight_decay,
            momentum: self.config.momentum,
            nesterov: self.config.nesterov,
            ns_steps: self.config.ns_steps,
            adjust_lr: self.config.adjust_lr,
        }
    }

    /// Takes a gradient into a matrix's momentum and gives its update.
    fn momentum(
        &mut self,
        spec: &ParameterSpec,
        gradient: Tensor<1>,
        rule: &MuonRule,
    ) -> Tensor<1> {
        let momentum = match self.states.remove(&spec.name) {
            Some(State::Muon { momentum }) => momentum,
            _ => gradient.zeros_like(),
        };
        let (update, momentum) = muon::momentum(gradient, momentum, rule);
        self.states.insert(spec.name.clone(), State::Muon { momentum });
        update
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The state as host tensors, named `<parameter>.<state>`, where this rank holds everything. A parameter
    /// that never had a gradient has none.
    ///
    /// # Errors
    /// If a tensor's size and shape disagree: a rank that holds only pieces.
    pub fn to_host(&self, parameters: &[ParameterSpec]) -> Result<Vec<HostTensor>, TensorError> {
        self.tensors(parameters)
            .map(|(name, spec, value)| HostTensor::from_f32(name, &spec.shape, &on_host(value)))
            .collect()
    }

    /// This rank's pieces of the state, named as in [`Optimizer::to_host`], each when its turn comes.
    ///
    /// # Errors
    /// If a tensor's size overflows: a fault of the program.
    pub fn deferred<E: From<CheckpointError>>(
        &self,
        layout: &Layout,
    ) -> Result<Vec<DeferredTensor<'_, E>>, TensorError> {
        // Of the ranks that hold the same, one gives it.
        let sharding = layout.sharding();
        let parameters = layout.parameters().filter(|local| local.counts(sharding));
        self.tensors(parameters.map(|local| &local.spec))
            .map(|(name, spec, value)| {
                let region = layout.region(&spec.name)?;
                DeferredTensor::f32_region(name, &spec.shape, region, move || on_host(value))
            })
            .collect()
    }

    fn tensors<'a>(
        &self,
        parameters: impl IntoIterator<Item = &'a ParameterSpec>,
    ) -> impl Iterator<Item = (String, &'a ParameterSpec, Tensor<1>)> {
        parameters.into_iter().flat_map(|spec| {
            let members = match self.states.get(&spec.name) {
                Some(State::Adamw { exp_avg, exp_avg_sq }) => {
                    vec![("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)]
                }
                Some(State::Muon { momentum }) => vec![("momentum", momentum)],
                None => vec![],
            };
            members
                .into_iter()
                .map(move |(state, value)| (state_name(spec, state), spec, value.clone()))
        })
    }

    /// Restores the state after `updates` updates. `has(name)` tells whether there is a tensor of that
    /// name of [`Optimizer::to_host`], `read(name, spec, region)` gives a part of it. A parameter
    /// without any state starts with none, as one that never had a gradient; of any other, all that its
    /// optimizer needs is read.
    ///
    /// # Errors
    /// What `read` returns, for what is missing too: the state is of another optimizer.
    pub fn restore<E: From<TensorError>>(
        &mut self,
        updates: u64,
        layout: &Layout,
        device: &Device,
        has: impl Fn(&str) -> bool,
        mut read: impl FnMut(&str, &ParameterSpec, &Region) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        self.updates = updates;
        self.states.clear();
        for LocalParameter { spec, .. } in layout.parameters() {
            let region = layout.region(&spec.name)?;
            if region.elements() == 0 || !STATES.iter().any(|state| has(&state_name(spec, state))) {
                continue;
            }
            let mut value = |state: &str| -> Result<Tensor<1>, E> {
                Ok(on_device(read(&state_name(spec, state), spec, &region)?, device))
            };
            let state = match self.rules[&spec.name].kind {
                OptimizerKind::Adamw => {
                    State::Adamw { exp_avg: value("exp_avg")?, exp_avg_sq: value("exp_avg_sq")? }
                }
                OptimizerKind::Muon => State::Muon { momentum: value("momentum")? },
            };
            self.states.insert(spec.name.clone(), state);
        }
        Ok(())
    }
}

/// The states of all optimizers.
const STATES: [&str; 3] = ["exp_avg", "exp_avg_sq", "momentum"];

fn state_name(spec: &ParameterSpec, state: &str) -> String {
    format!("{}.{state}", spec.name)
}
