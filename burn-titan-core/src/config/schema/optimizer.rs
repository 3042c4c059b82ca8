//! The sections `optimizer` and `lr_scheduler`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The optimizer and its parameter groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Optimizer of all parameters that no group gives another.
    pub name: OptimizerKind,
    /// Peak learning rate, above 0.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// AdamW: decay of the first moment, at least 0 and below 1.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// AdamW: decay of the second moment, at least 0 and below 1.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// AdamW: added to the root of the second moment, above 0.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Muon: momentum, at least 0 and below 1.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Muon: whether the update looks ahead by Nesterov's rule.
    pub nesterov: bool,
    /// Muon: Newton-Schulz iterations.
    #[schemars(range(min = 1, max = 100))]
    pub ns_steps: usize,
    /// Muon: how the learning rate follows a matrix's shape.
    pub adjust_lr: MuonAdjustLr,
    /// Exceptions by parameter name; the first group that matches counts.
    pub groups: Vec<OptimizerGroupConfig>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerKind::default(),
            lr: 8e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            momentum: 0.95,
            nesterov: true,
            ns_steps: 5,
            adjust_lr: MuonAdjustLr::default(),
            groups: vec![],
        }
    }
}

/// An optimizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    #[default]
    Adamw,
    /// Momentum orthogonalised by Newton-Schulz iterations (Jordan, 2024). Only for matrices: give
    /// embeddings, the head and norms `adamw` by groups.
    Muon,
}

/// How Muon's learning rate follows a matrix's shape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MuonAdjustLr {
    /// `sqrt(max(1, rows / columns))`, rows and columns as in `[out, in]`.
    #[default]
    Original,
    /// `0.2 sqrt(max(rows, columns))`, so that AdamW's learning rates carry over.
    MatchRmsAdamw,
}

/// Exceptions for the parameters whose name matches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizerGroupConfig {
    /// Name pattern: `*` matches within one part of a name, `**` any number of parts, `{a,b}` either.
    #[schemars(length(min = 1))]
    pub pattern: String,
    /// Optimizer of these parameters. Default: `optimizer.name`.
    #[serde(default)]
    pub name: Option<OptimizerKind>,
    /// Their peak learning rate. Default: `optimizer.lr`.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: Option<f64>,
    /// Their weight decay. Default: `optimizer.weight_decay`.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub weight_decay: Option<f64>,
}

/// Warm-up, stable and decay phases of the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LrSchedulerConfig {
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Share of all steps that decays at the end. Default: all steps after the warm-up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay_ratio: Option<f64>,
    /// Shape of the decay.
    pub decay_type: DecayType,
    /// The learning rate ends at this factor of its peak.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_lr_factor: f64,
}

impl Default for LrSchedulerConfig {
    fn default() -> Self {
        Self {
            warmup_steps: 2,
            decay_ratio: None,
            decay_type: DecayType::Linear,
            min_lr_factor: 0.0,
        }
    }
}

/// Shape of the decay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecayType {
    /// `1 - p`.
    #[default]
    Linear,
    /// `1 - sqrt(p)`.
    Sqrt,
    /// `(1 + cos(pi p)) / 2`.
    Cosine,
}
