//! Finding where a step broke.

use burn::tensor::{DType, Tensor};
use thiserror::Error;

use super::{GradientStore, Machine, ParameterStore, on_host, scalar};
use crate::model::{Context, Stream};

/// What is not finite in a step, and where it began.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NonFinite {
    /// The loss of a micro-batch.
    #[error(
        "the loss of micro-batch {micro} is not finite; the first unit whose output is not is `{unit}`"
    )]
    Loss {
        /// The micro-batch, from 0.
        micro: usize,
        /// The first unit, in the order of the forward, whose output is not finite.
        unit: String,
    },
    /// A gradient.
    #[error(
        "the gradient of `{parameter}` is not finite; unit `{unit}` is the first of the backward with such a gradient"
    )]
    Gradient {
        /// The parameter.
        parameter: String,
        /// The first unit, in the order of the backward, with a gradient that is not finite.
        unit: String,
    },
    /// The norm over all gradients.
    #[error("the global norm of the gradients overflows float32, though each gradient is finite")]
    Norm,
}

impl NonFinite {
    /// The micro-batch, where it is known.
    pub fn micro_batch(&self) -> Option<usize> {
        match self {
            Self::Loss { micro, .. } => Some(*micro),
            Self::Gradient { .. } | Self::Norm => None,
        }
    }
}

impl Machine<'_> {
    /// Runs the micro-batch again, unit by unit, to find the first output that is not finite.
    pub(super) fn broken_loss(
        &self,
        parameters: &ParameterStore,
        micro: usize,
        context: &Context,
    ) -> NonFinite {
        let mut stream = Stream::Tokens(context.tokens.clone());
        for unit in &self.model.units {
            let full = unit.with_parameters(false, &mut |name| {
                parameters
                    .get(name)
                    .expect("a unit's parameter is stored")
                    .value()
                    .cast(self.compute)
            });
            stream = full.forward(stream, context);
            let finite = match &stream {
                Stream::Hidden(hidden) => is_finite(hidden.clone()),
                Stream::Logits(logits) => is_finite(logits.clone()),
                Stream::Loss(loss) => is_finite(loss.clone()),
                Stream::Tokens(_) => true,
            };
            if !finite {
                return NonFinite::Loss { micro, unit: unit.name().into() };
            }
        }
        let last = self.model.units.last().map_or("", |unit| unit.name());
        NonFinite::Loss { micro, unit: last.into() }
    }

    pub(super) fn broken_gradient(&self, gradients: &GradientStore) -> NonFinite {
        for unit in self.model.units.iter().rev() {
            for spec in unit.parameters() {
                if gradients.get(&spec.name).is_some_and(|gradient| !is_finite(gradient)) {
                    return NonFinite::Gradient { parameter: spec.name, unit: unit.name().into() };
                }
            }
        }
        NonFinite::Norm
    }
}

/// Whether every element is finite. The sum of squares tells it on the device for nearly all tensors;
/// it overflows for large finite elements, so those are looked at one by one.
fn is_finite<const D: usize>(x: Tensor<D>) -> bool {
    let elements = x.shape().num_elements();
    let flat = x.cast(DType::F32).reshape([elements]);
    scalar(burn_titan_kernels::sum_of_squares(flat.clone())).is_finite()
        || on_host(flat).iter().all(|value| value.is_finite())
}
