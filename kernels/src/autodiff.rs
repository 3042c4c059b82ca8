//! Registering hand-written backward passes with Burn's autodiff.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend};

/// `(saved, gradient of the output, which inputs need one) -> gradients of the inputs`.
pub(crate) type BackwardFn<B, S, const N: usize> =
    fn(S, FloatTensor<B>, [bool; N]) -> [Option<FloatTensor<B>>; N];

struct FusedBackward<B: Backend, S, const N: usize>(BackwardFn<B, S, N>);

impl<B: Backend, S, const N: usize> Debug for FusedBackward<B, S, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FusedBackward")
    }
}

impl<B: Backend, S, const N: usize> Backward<B, N> for FusedBackward<B, S, N>
where
    S: Clone + Send + Debug + 'static,
{
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output_gradient = grads.consume::<B>(&ops.node);
        let needed = ops.parents.each_ref().map(Option::is_some);
        let gradients = (self.0)(ops.state, output_gradient, needed);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Runs a forward on the backend's own tensors and registers its backward.
///
/// `forward` returns the output and what `backward` will need; `keep` is false where no gradient will
/// be asked for.
pub(crate) fn fused_op<B, S, C, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    forward: impl FnOnce([FloatTensor<B>; N], bool) -> (FloatTensor<B>, Option<S>),
    backward: BackwardFn<B, S, N>,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    S: Clone + Send + Debug + 'static,
    C: CheckpointStrategy,
{
    let guards = inputs.each_ref().map(|input| input.node());
    let primitives = inputs.map(|input| input.into_primitive());
    match FusedBackward::<B, S, N>(backward).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let (output, saved) = forward(primitives, true);
            prepared.finish(saved.expect("a tracked forward saves its state"), output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(forward(primitives, false).0),
    }
}

/// A backend's tensor as a constant of its autodiff backend.
pub(crate) fn untracked<B: Backend, C: CheckpointStrategy>(
    tensor: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    <Autodiff<B, C> as AutodiffBackend>::from_inner(tensor)
}
