//! Finding where a step broke.

use burn::tensor::{DType, Tensor};
use burn_titan_parallel::{CommError, Work};
use thiserror::Error;

use super::{GradientStore, Machine, ParameterStore, on_host, scalar};
use crate::model::{Context, Stream, Unit};

/// What is not finite in a step, and where it began.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NonFinite {
    /// The loss of a micro-batch.
    #[error(
        "the loss of micro-batch {micro}{} is not finite; the first unit whose output is not is `{unit}`", .rank.map_or(String::new(), |rank| format!(" of data-parallel rank {rank}"))
    )]
    Loss {
        /// The rank among those that read different samples, where there are several.
        rank: Option<usize>,
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

/// A micro-batch of one of the ranks that read different samples, both from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatch {
    /// The rank.
    pub rank: usize,
    /// The micro-batch.
    pub micro: usize,
}

impl NonFinite {
    /// The micro-batch, where it is known.
    pub fn micro_batch(&self) -> Option<MicroBatch> {
        match self {
            Self::Loss { rank, micro, .. } => {
                Some(MicroBatch { rank: rank.unwrap_or(0), micro: *micro })
            }
            Self::Gradient { .. } | Self::Norm => None,
        }
    }
}

impl Machine<'_> {
    /// Has the rank of a micro-batch run it again, unit by unit, to find the first output that is not finite.
    /// All ranks call it, for they share the parameters.
    pub(super) fn broken_loss(
        &self,
        parameters: &ParameterStore,
        place: MicroBatch,
        contexts: &[Context],
    ) -> Result<NonFinite, CommError> {
        let MicroBatch { rank, micro } = place;
        let units = self.units;
        let context = &contexts[micro];
        // Ranks that share its samples run it together, to the end: none may wait for another. Where experts are dealt
        // out, these are on ranks of other samples, which run theirs.
        let data = self.groups.roles.data_rank(rank);
        let is_its_rank = self.groups.roles.reads_with(rank);
        let takes_part = is_its_rank || self.groups.expert.several();
        let owned = self.groups.owned(units.len());
        let (mut stream, mut broken, mut sending) = (None, None, Vec::new());
        for (number, unit) in units.iter().enumerate().filter(|(number, _)| owned[*number]) {
            let full = self.gathered(number, self.gather(number, parameters), parameters)?;
            if !takes_part {
                continue;
            }
            let input = match stream.take() {
                Some(input) => input,
                None if number == 0 => Stream::Tokens(context.tokens.clone()),
                None => Stream::Hidden(self.receive(context, number - 1)?),
            };
            let unit = unit.with_parameters(false, &mut |name| full[name].clone());
            let output = unit.forward(input, context);
            self.groups.check()?;
            if is_its_rank && broken.is_none() && !is_finite_stream(&output) {
                broken = Some(number);
            }
            match owned.get(number + 1) {
                Some(false) => sending.push(self.send(output.hidden(), number + 1)),
                _ => stream = Some(output),
            }
        }
        sending.into_iter().try_for_each(Work::wait)?;
        // The first over all ranks is the one with most units from it to the end; other ranks know of none.
        let left = broken.map_or(0, |number| units.len() - number);
        let left = self.groups.largest(left as i32, self.device)? as usize;
        let unit = units.get(units.len().wrapping_sub(left)).map_or("", |unit| unit.name());
        let rank = self.groups.several().then_some(data);
        Ok(NonFinite::Loss { rank, micro, unit: unit.into() })
    }

    /// The first parameter, in the order of the backward, whose gradient is not finite on some rank.
    pub(super) fn broken_gradient(
        &self,
        gradients: &GradientStore,
    ) -> Result<NonFinite, CommError> {
        let named = |unit: &'_ dyn Unit| {
            let name = unit.name().to_string();
            unit.parameters().into_iter().map(move |spec| (name.clone(), spec.name))
        };
        let all: Vec<_> = self.units.iter().rev().flat_map(|unit| named(&**unit)).collect();
        let broken = |(_, parameter): &(String, String)| {
            gradients.get(parameter).is_some_and(|gradient| !is_finite(gradient))
        };
        // The largest number of parameters from it to the end, for the first over all ranks.
        let left = all.iter().position(broken).map_or(0, |first| all.len() - first);
        let left = self.groups.largest(left as i32, self.device)? as usize;
        Ok(match all.into_iter().nth_back(left.wrapping_sub(1)) {
            Some((unit, parameter)) => NonFinite::Gradient { parameter, unit },
            None => NonFinite::Norm,
        })
    }
}

fn is_finite_stream(stream: &Stream) -> bool {
    match stream.clone() {
        Stream::Hidden(hidden) => is_finite(hidden),
        Stream::Logits(logits) => is_finite(logits),
        Stream::Loss(loss) => is_finite(loss),
        Stream::Tokens(_) => true,
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
