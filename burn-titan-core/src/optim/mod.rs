//! Optimizers on flat f32 parameters, chosen by groups of name patterns.
//!
//! State is keyed by parameter name, so that it survives any change of mesh or of construction order.

mod muon;

use std::collections::HashMap;

use burn::tensor::{Device, Tensor};
use burn_titan_kernels::{AdamwStep, adamw};
use thiserror::Error;

pub use muon::{MuonRule, muon_update};

use crate::checkpoint::{CheckpointError, DeferredTensor, HostTensor, TensorError};
use crate::config::{NamePattern, OptimizerConfig, OptimizerKind};
use crate::executor::{GradientStore, ParameterStore, on_device, on_host};
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
    /// `gradient_scale` the gradients, which are consumed.
    pub fn step(
        &mut self,
        parameters: &mut ParameterStore,
        gradients: &mut GradientStore,
        lr_factor: f64,
        gradient_scale: f64,
    ) {
        self.updates += 1;
        for parameter in parameters.iter_mut() {
            let spec = parameter.spec.clone();
            let Some(gradient) = gradients.take(&spec.name) else { continue };
            let rule = self.rules[&spec.name];
            let state = self.states.remove(&spec.name);
            let mut next = None;
            parameter.update(|value| {
                let (value, state) =
                    self.update(rule, state, &spec, value, gradient, lr_factor, gradient_scale);
                next = Some(state);
                value
            });
            if let Some(state) = next {
                self.states.insert(spec.name, state);
            }
        }
    }

    fn update(
        &self,
        rule: ParameterRule,
        state: Option<State>,
        spec: &ParameterSpec,
        value: Tensor<1>,
        gradient: Tensor<1>,
        lr_factor: f64,
        gradient_scale: f64,
    ) -> (Tensor<1>, State) {
        let lr = rule.lr * lr_factor;
        match rule.kind {
            OptimizerKind::Adamw => {
                let (exp_avg, exp_avg_sq) = match state {
                    Some(State::Adamw { exp_avg, exp_avg_sq }) => (exp_avg, exp_avg_sq),
                    _ => (value.zeros_like(), value.zeros_like()),
                };
                let step = AdamwStep {
                    lr,
                    beta1: self.config.beta1,
                    beta2: self.config.beta2,
                    eps: self.config.eps,
                    weight_decay: rule.weight_decay,
                    step: self.updates,
                    gradient_scale,
                };
                let [value, exp_avg, exp_avg_sq] =
                    adamw(value, gradient, exp_avg, exp_avg_sq, step);
                (value, State::Adamw { exp_avg, exp_avg_sq })
            }
            OptimizerKind::Muon => {
                let momentum = match state {
                    Some(State::Muon { momentum }) => momentum,
                    _ => value.zeros_like(),
                };
                let muon = MuonRule {
                    lr,
                    weight_decay: rule.weight_decay,
                    momentum: self.config.momentum,
                    nesterov: self.config.nesterov,
                    ns_steps: self.config.ns_steps,
                    adjust_lr: self.config.adjust_lr,
                };
                let shape = [spec.shape[0], spec.shape[1]];
                let (value, momentum) =
                    muon_update(shape, value, gradient * gradient_scale, momentum, &muon);
                (value, State::Muon { momentum })
            }
        }
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The state as host tensors, named `<parameter>.<state>`. A parameter that never had a gradient
    /// has none.
    ///
    /// # Errors
    /// If a tensor's size and shape disagree: a fault of the program.
    pub fn to_host(&self, parameters: &[ParameterSpec]) -> Result<Vec<HostTensor>, TensorError> {
        self.tensors(parameters)
            .map(|(name, spec, value)| HostTensor::from_f32(name, &spec.shape, &on_host(value)))
            .collect()
    }

    /// As [`Optimizer::to_host`], each tensor when its turn comes.
    ///
    /// # Errors
    /// If a tensor's size overflows: a fault of the program.
    pub fn deferred<E: From<CheckpointError>>(
        &self,
        parameters: &[ParameterSpec],
    ) -> Result<Vec<DeferredTensor<'_, E>>, TensorError> {
        self.tensors(parameters)
            .map(|(name, spec, value)| {
                DeferredTensor::f32(name, &spec.shape, move || on_host(value))
            })
            .collect()
    }

    fn tensors<'a>(
        &self,
        parameters: &'a [ParameterSpec],
    ) -> impl Iterator<Item = (String, &'a ParameterSpec, Tensor<1>)> {
        parameters.iter().flat_map(|spec| {
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
    /// name of [`Optimizer::to_host`], `read(name, spec)` gives it. A parameter without any state starts
    /// with none, as one that never had a gradient; of any other, all that its optimizer needs is read.
    ///
    /// # Errors
    /// What `read` returns, for what is missing too: the state is of another optimizer.
    pub fn restore<E: From<TensorError>>(
        &mut self,
        updates: u64,
        parameters: &[ParameterSpec],
        device: &Device,
        has: impl Fn(&str) -> bool,
        mut read: impl FnMut(&str, &ParameterSpec) -> Result<HostTensor, E>,
    ) -> Result<(), E> {
        self.updates = updates;
        self.states.clear();
        for spec in parameters {
            if !STATES.iter().any(|state| has(&state_name(spec, state))) {
                continue;
            }
            let mut value = |state: &str| -> Result<Tensor<1>, E> {
                let tensor = read(&state_name(spec, state), spec)?;
                Ok(on_device(tensor.to_f32()?, device))
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
