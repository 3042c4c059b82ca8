//! Running a program on real tensors.
//!
//! The executor owns the parameters and the skeletons of the units, and does what each action of a
//! [`Program`] says. A unit's backward starts from an injected gradient, so units run one by one and
//! nothing but what the program keeps is alive between them.

mod non_finite;
mod parameters;
mod pass;

use burn::tensor::{DType, Device, Tensor};
use burn_titan_parallel::{Action, Communicator, Program, step};

pub use non_finite::NonFinite;
pub use parameters::{GradientStore, Parameter, ParameterStore};
pub(crate) use parameters::{on_device, on_host};
use pass::Pass;

use crate::model::{Context, Model, Stream};
use crate::optim::{Optimizer, clip_factor};

/// What a training step measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the step's valid tokens, in nats a token.
    pub loss: f64,
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
}

/// How the optimizer moves in a step.
#[derive(Debug, Clone, Copy)]
pub struct StepRule {
    /// Factor on the peak learning rates.
    pub lr_factor: f64,
    /// Gradients are scaled down to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
}

/// A model on a device: its units and its parameters.
pub struct Executor {
    model: Model,
    /// The parameters, in f32.
    pub parameters: ParameterStore,
    device: Device,
    compute: DType,
    communicator: Box<dyn Communicator>,
}

impl Executor {
    /// A model with its parameters, computing in `compute` (f32 or bf16).
    pub fn new(
        model: Model,
        parameters: ParameterStore,
        device: Device,
        compute: DType,
        communicator: Box<dyn Communicator>,
    ) -> Self {
        Self { model, parameters, device, compute, communicator }
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
    /// If the loss or the gradient norm is not finite; no parameter has changed then.
    pub fn train_step(
        &mut self,
        program: &Program,
        contexts: &[Context],
        valid_tokens: usize,
        optimizer: &mut Optimizer,
        rule: StepRule,
    ) -> Result<StepOutcome, NonFinite> {
        let (losses, mut gradients) = {
            let mut pass = Pass::new(self, contexts, valid_tokens);
            program.actions.iter().for_each(|action| pass.run(action));
            pass.finish()
        };
        let mut outcome = StepOutcome { loss: 0.0, grad_norm: 0.0 };
        for action in &program.actions {
            match action {
                Action::ClipGradientNorm => {
                    outcome = self.measure(&losses, &gradients, contexts, valid_tokens)?;
                }
                Action::OptimizerStep => {
                    let scale = clip_factor(outcome.grad_norm, rule.max_grad_norm);
                    optimizer.step(&mut self.parameters, &mut gradients, rule.lr_factor, scale);
                }
                _ => {}
            }
        }
        Ok(outcome)
    }

    /// The gradients of a step's loss, without an update; for checks against references.
    pub fn gradients(
        &self,
        program: &Program,
        contexts: &[Context],
        valid_tokens: usize,
    ) -> GradientStore {
        let mut pass = Pass::new(self, contexts, valid_tokens);
        program.actions.iter().for_each(|action| pass.run(action));
        pass.finish().1
    }

    /// Runs forward only. The last unit gives what `context.head` asks for.
    pub fn forward(&self, context: &Context) -> Stream {
        let mut pass = Pass::new(self, std::slice::from_ref(context), 1);
        let program = step::inference(self.model.units.len());
        program.actions.iter().for_each(|action| pass.run(action));
        pass.into_output()
    }

    fn measure(
        &self,
        losses: &[f64],
        gradients: &GradientStore,
        contexts: &[Context],
        valid_tokens: usize,
    ) -> Result<StepOutcome, NonFinite> {
        let loss = losses.iter().sum::<f64>() / valid_tokens.max(1) as f64;
        if let Some(micro) = losses.iter().position(|l| !l.is_finite()) {
            return Err(self.broken_loss(micro, &contexts[micro]));
        }
        let grad_norm = self.gradient_norm(gradients);
        if !grad_norm.is_finite() {
            return Err(self.broken_gradient(gradients));
        }
        Ok(StepOutcome { loss, grad_norm })
    }

    /// The global L2 norm of all gradients. Each parameter counts once.
    pub fn gradient_norm(&self, gradients: &GradientStore) -> f64 {
        let sums = self
            .parameters
            .iter()
            .filter_map(|p| gradients.get(&p.spec.name))
            .map(burn_titan_kernels::sum_of_squares);
        let Some(total) = sums.reduce(|a, b| a + b) else { return 0.0 };
        scalar(self.communicator.all_reduce(total).wait()).sqrt()
    }
}

/// The one element of a tensor, in f64.
pub(crate) fn scalar(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}
