//! Registering hand-written backward passes with Burn's autodiff.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex, tensor::FloatTensor};
use burn_flex::FlexTensor;

/// `(saved, gradient of the output, which inputs need one) -> gradients of the inputs`.
pub(crate) type BackwardFn<S, const N: usize> =
    fn(S, FlexTensor, [bool; N]) -> [Option<FlexTensor>; N];

#[derive(Debug)]
struct NativeBackward<S, const N: usize>(BackwardFn<S, N>);

impl<S: Clone + Send + Debug + 'static, const N: usize> Backward<Flex, N> for NativeBackward<S, N> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output_gradient = grads.consume::<Flex>(&ops.node);
        let needed = ops.parents.each_ref().map(Option::is_some);
        let gradients = (self.0)(ops.state, output_gradient, needed);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Runs a native forward on the inputs and registers its backward.
///
/// `forward` returns the output and what `backward` will need; `keep` is false where no gradient will
/// be asked for.
pub(crate) fn native_op<S, C, const N: usize>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    forward: impl FnOnce([FlexTensor; N], bool) -> (FlexTensor, Option<S>),
    backward: BackwardFn<S, N>,
) -> FloatTensor<Autodiff<Flex, C>>
where
    S: Clone + Send + Debug + 'static,
    C: CheckpointStrategy,
{
    let guards = inputs.each_ref().map(|input| input.node());
    let primitives = inputs.map(|input| input.into_primitive());
    match NativeBackward(backward).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let (output, saved) = forward(primitives, true);
            prepared.finish(saved.expect("a tracked forward saves its state"), output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(forward(primitives, false).0),
    }
}
