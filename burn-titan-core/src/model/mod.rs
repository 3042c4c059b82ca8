//! What a model is to the platform: units made of plain Burn modules, and the family they come from.

mod activations;
mod context;
mod experts;
mod family;
mod initial;
mod tensor_plan;
mod unit;

pub use activations::{Activations, Sharing, Workload};
pub use context::{Agree, Beside, Context, ExpertLayer, HeadOutput, Mixture, Parallel, Stream};
pub use experts::{AuxiliaryLosses, ExpertRank, Experts, ParameterRole};
pub use family::{FieldProblem, HfExtras, HfWeights, Model, ModelError, ModelFamily, Registry};
pub use initial::{Initial, initial_values};
pub use tensor_plan::{Cut, Heads, Line, PlanError, Split, TensorPlan, TensorRank};
pub use unit::{
    ModuleUnit, ParameterSpec, Site, Unit, UnitModule, parameter_elements, parameter_specs,
};
