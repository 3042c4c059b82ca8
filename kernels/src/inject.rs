//! Backward of a given gradient.
//!
//! Burn starts every backward pass from ones. [`inject_gradient`] is the identity whose backward
//! ignores that seed and hands its own gradient on, so that a model can be cut into units whose
//! backward passes run one by one, each from the gradient of the unit after it.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

/// The dispatched form of [`inject_gradient`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait InjectOps: Backend {
    /// Returns `output`; in backward its gradient is `gradient`, whatever the seed.
    #[fusion(dtype = output, shape = output)]
    fn inject_gradient(output: FloatTensor<Self>, gradient: FloatTensor<Self>)
    -> FloatTensor<Self>;
}

impl InjectOps for Flex {
    fn inject_gradient(output: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        output
    }
}

#[cfg(feature = "cube")]
impl InjectOps for burn_cubecl::CubeBackend {
    fn inject_gradient(output: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        output
    }
}

#[derive(Debug)]
struct InjectBackward;

impl<B: Backend> Backward<B, 1> for InjectBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let _seed = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, ops.state);
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> InjectOps for Autodiff<B, C> {
    fn inject_gradient(
        output: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match InjectBackward.prepare::<C>([output.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(gradient.into_primitive(), output.into_primitive())
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output.into_primitive()),
        }
    }
}

/// The identity on `output` (any shape) whose backward passes on `gradient` (same shape and dtype,
/// not tracked) instead of the seed: `inject_gradient(y, dy).backward()`.
pub fn inject_gradient<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as InjectOps>::inject_gradient(
        output.into_dispatch(),
        gradient.into_dispatch(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn cut_backward_equals_whole_backward() {
        let device = Device::flex().autodiff();
        let x = Tensor::<1>::from_floats([1.0, -2.0, 3.0], &device).require_grad();
        let whole = (x.clone() * x.clone()).exp().backward();

        let y = x.clone() * x.clone();
        let cut = y.clone().inner().autodiff().require_grad();
        let grads = cut.clone().exp().backward();
        let dy = cut.grad(&grads).unwrap();
        let parts = inject_gradient(y, dy).backward();

        let data = |g: &burn::tensor::Gradients| -> TensorData { x.grad(g).unwrap().into_data() };
        data(&parts).assert_eq(&data(&whole), true);
    }
}
