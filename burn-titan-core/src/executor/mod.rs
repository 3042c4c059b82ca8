//! Running a program on real tensors.
//!
//! The executor owns the parameters and the skeletons of the units, and does what each action of a
//! [`Program`] says. A unit's backward starts from an injected gradient, so units run one by one and
//! nothing but what the program keeps is alive between them.

mod exchange;
mod experts;
mod groups;
mod layout;
mod non_finite;
mod parameters;
mod pass;

use burn::tensor::{DType, Device, Tensor};
use burn_titan_parallel::{Action, CommError, Program, step};
use thiserror::Error;

pub(crate) use exchange::BLOCK;
pub use experts::ExpertLoads;
pub use groups::{Groups, ModelSplit, Roles};
pub use layout::{Bucket, Layout, LocalParameter, Sharding, Sharers, UnitLayout};
pub use non_finite::{MicroBatch, NonFinite};
pub use parameters::{GradientStore, Parameter, ParameterStore};
pub(crate) use parameters::{on_device, on_host};
use pass::Pass;

use crate::config::Quantize;
use crate::data::Batch;
use crate::model::{Context, HeadOutput, Model, Stream, Unit};
use crate::optim::{Optimizer, clip_factor};

/// The lane of a trace ([`burn_titan_parallel::trace`]) that has a step's actions, in the order of the program.
pub(crate) const TRAINING: &str = "training";

/// What a training step measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the step's valid tokens, in nats a token.
    pub loss: f64,
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// How many tokens each expert has met; of no layer, where the model has none.
    pub expert_loads: ExpertLoads,
    /// What the choice of experts has added to the loss, which is without it, where the model has such losses.
    pub auxiliary_loss: Option<f64>,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StepError {
    /// The loss or a gradient is not finite.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// An exchange with other ranks failed.
    #[error(transparent)]
    Communication(#[from] CommError),
}

/// How the optimizer moves in a step.
#[derive(Debug, Clone, Copy)]
pub struct StepRule {
    /// Factor on the peak learning rates.
    pub lr_factor: f64,
    /// Gradients are scaled down to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
}

/// The formats of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Of activations, and of the weights they meet: f32 or bf16.
    pub compute: DType,
    /// In which gradients are summed over ranks.
    pub reduce: DType,
    /// What travels as int8 between the ranks that share the parameters.
    pub quantize: Quantize,
}

impl Precision {
    /// Everything in f32.
    pub const F32: Self =
        Self { compute: DType::F32, reduce: DType::F32, quantize: Quantize::None };
}

/// A model on a device: its units, and this rank's pieces of its parameters.
pub struct Executor {
    model: Model,
    /// The units with what this rank of `tp` has of their parameters.
    units: Vec<Box<dyn Unit>>,
    /// The parameters, in f32.
    pub parameters: ParameterStore,
    device: Device,
    precision: Precision,
    groups: Groups,
}

impl Executor {
    /// A model with its parameters. They may rest on another device than the one that computes.
    ///
    /// # Panics
    /// If the parameters are not shared by as many ranks as the group that shares them has.
    pub fn new(
        model: Model,
        parameters: ParameterStore,
        device: Device,
        precision: Precision,
        groups: Groups,
    ) -> Self {
        let layout = parameters.layout();
        assert_eq!(layout.sharding(), groups.sharding(), "how the parameters are shared");
        let units = model.units.iter().map(|unit| reshaped(&**unit, layout)).collect();
        Self { model, units, parameters, device, precision, groups }
    }

    /// Puts this rank's share of a micro-batch on the device.
    pub fn context(&self, batch: &Batch, head: HeadOutput) -> Context {
        Context::shared_by(batch, head, &self.device, &self.groups.parallel)
    }

    /// The ranks that this one exchanges tensors with.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The device that everything is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a training step: `contexts` are the micro-batches, `valid_tokens` counts the targets of
    /// all of them over all ranks.
    ///
    /// # Errors
    /// If the loss or the gradient norm is not finite, or an exchange with other ranks fails; no parameter
    /// has changed then.
    pub fn train_step(
        &mut self,
        program: &Program,
        contexts: &[Context],
        valid_tokens: usize,
        optimizer: &mut Optimizer,
        rule: StepRule,
    ) -> Result<StepOutcome, StepError> {
        let Self { model, units, parameters, device, precision, groups } = self;
        let Precision { compute, reduce, quantize } = *precision;
        let width = model.dim;
        let machine = Machine { units, width, device, compute, reduce, quantize, groups };
        share_out(contexts, groups);
        let mut pass = Pass::new(machine, contexts, valid_tokens);
        let mut outcome = StepOutcome::default();
        let (mut loads, mut auxiliary) = (ExpertLoads::default(), None);
        for action in &program.actions {
            let run = || match action {
                Action::ClipGradientNorm => {
                    outcome = pass.measure(parameters)?;
                    Ok(())
                }
                Action::SumExpertLoads => {
                    if let Some(experts) = &model.experts {
                        loads = ExpertLoads::sum(experts, contexts, groups)?;
                        auxiliary = experts::auxiliary_loss(experts, contexts, groups)?;
                    }
                    Ok(())
                }
                Action::OptimizerStep => {
                    let scale = clip_factor(outcome.grad_norm, rule.max_grad_norm);
                    let gradients = pass.gradients();
                    optimizer.step(parameters, gradients, rule.lr_factor, scale, &*groups.shard)?;
                    if let Some(experts) = &model.experts {
                        loads.balance(experts, parameters);
                    }
                    Ok(())
                }
                compute => Ok::<_, StepError>(pass.run(compute, parameters)?),
            };
            groups.trace.span(TRAINING, || action.to_string(), run)?;
        }
        Ok(StepOutcome { expert_loads: loads, auxiliary_loss: auxiliary, ..outcome })
    }

    /// Goes through a step with other groups, of [`World::rehearsal`](burn_titan_parallel::World::rehearsal), and changes
    /// nothing: so that the device has met all that the step computes, but for the update.
    ///
    /// # Errors
    /// If an exchange with other ranks fails.
    pub fn rehearse(
        &self,
        program: &Program,
        batches: &[Batch],
        groups: &Groups,
    ) -> Result<(), CommError> {
        let context = |batch: &Batch| {
            Context::shared_by(batch, HeadOutput::Loss, &self.device, &groups.parallel)
        };
        let contexts: Vec<Context> = batches.iter().map(context).collect();
        let valid_tokens = batches.iter().map(|batch| batch.valid_tokens).sum();
        let machine = Machine { groups, ..self.machine() };
        self.computed(machine, program, &contexts, valid_tokens).map(drop)
    }

    /// This rank's pieces of the gradients of a step's loss, without an update; for checks against references.
    ///
    /// # Errors
    /// If an exchange with other ranks fails.
    pub fn gradients(
        &self,
        program: &Program,
        contexts: &[Context],
        valid_tokens: usize,
    ) -> Result<GradientStore, CommError> {
        self.computed(self.machine(), program, contexts, valid_tokens)
    }

    /// The gradients that a program's computation gives on a machine.
    fn computed(
        &self,
        machine: Machine,
        program: &Program,
        contexts: &[Context],
        valid_tokens: usize,
    ) -> Result<GradientStore, CommError> {
        share_out(contexts, machine.groups);
        let mut pass = Pass::new(machine, contexts, valid_tokens);
        let updates = |a: &&Action| {
            use Action::{ClipGradientNorm, OptimizerStep, SumExpertLoads};
            !matches!(a, SumExpertLoads | ClipGradientNorm | OptimizerStep)
        };
        for action in program.actions.iter().filter(updates) {
            pass.run(action, &self.parameters)?;
        }
        Ok(std::mem::take(pass.gradients()))
    }

    /// Runs forward only. The last unit gives what `context.head` asks for, on the rank that has it.
    ///
    /// # Errors
    /// If an exchange with other ranks fails.
    pub fn forward(&self, context: &Context) -> Result<Option<Stream>, CommError> {
        let mut pass = Pass::new(self.machine(), std::slice::from_ref(context), 1);
        let program = step::inference_of(&self.groups.owned(self.units.len()));
        for action in &program.actions {
            pass.run(action, &self.parameters)?;
        }
        pass.into_output()
    }

    /// The global L2 norm of all gradients. Each parameter counts once.
    ///
    /// # Errors
    /// If an exchange with other ranks fails.
    pub fn gradient_norm(&self, gradients: &GradientStore) -> Result<f64, CommError> {
        self.machine().gradient_norm(&self.parameters, gradients)
    }

    fn machine(&self) -> Machine<'_> {
        Machine {
            units: &self.units,
            width: self.model.dim,
            device: &self.device,
            compute: self.precision.compute,
            reduce: self.precision.reduce,
            quantize: self.precision.quantize,
            groups: &self.groups,
        }
    }
}

/// Tells micro-batches which part of a step each is: over all ranks, they are equally large.
fn share_out(contexts: &[Context], groups: &Groups) {
    let share = 1.0 / (contexts.len() * groups.roles.data_ranks()) as f64;
    contexts.iter().for_each(|context| context.trains(share));
}

/// The skeleton of a unit with what is here of its parameters.
pub(crate) fn reshaped(unit: &dyn Unit, layout: &Layout) -> Box<dyn Unit> {
    let whole: std::collections::HashMap<String, Vec<usize>> =
        unit.parameters().into_iter().map(|spec| (spec.name, spec.shape)).collect();
    unit.reshaped(&|name| layout.shape(name).unwrap_or(&whole[name]).to_vec())
}

/// What an action runs with, beside the parameters.
#[derive(Clone, Copy)]
struct Machine<'a> {
    units: &'a [Box<dyn Unit>],
    /// Of the hidden states between units.
    width: usize,
    device: &'a Device,
    compute: DType,
    reduce: DType,
    quantize: Quantize,
    groups: &'a Groups,
}

impl Machine<'_> {
    fn gradient_norm(
        &self,
        parameters: &ParameterStore,
        gradients: &GradientStore,
    ) -> Result<f64, CommError> {
        let sharding = parameters.layout().sharding();
        let sums = parameters
            .iter()
            .filter(|p| p.local.counts(sharding))
            .filter_map(|p| gradients.get(p.name()))
            .map(burn_titan_kernels::sum_of_squares);
        let total = sums.reduce(|a, b| a + b);
        // A rank without any gradient takes part in the sum all the same.
        let total = total.unwrap_or_else(|| Tensor::zeros([1], (parameters.device(), DType::F32)));
        let total = self.groups.norm.all_reduce_sum(total).wait()?;
        Ok(scalar(total).sqrt())
    }
}

/// The one element of a tensor, in f64.
pub(crate) fn scalar(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}
