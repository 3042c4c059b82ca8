//! A function on tensors whose backward is a closure.
//!
//! For what is no operation of a backend: above all functions that exchange tensors with other ranks. Both closures
//! run on the thread that calls the forward or the backward, at the place of the node, with plain tensors. They may
//! wait for other ranks, even for other threads of this process: Burn holds a lock a graph during a backward, and
//! ranks share no graph. (A backend extension would not do: under Burn's fusion it runs when its stream is flushed,
//! maybe on behalf of another thread.)

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, DispatchKindConversion, DispatchTensorKind, Flex};
use burn::tensor::{DispatchTensor, Tensor};

use crate::autodiff::fused_op;

/// The gradients of `N` inputs of rank `D`, from that of the output of rank `E`.
pub type Backward<const N: usize, const D: usize, const E: usize> =
    Box<dyn FnOnce(Tensor<E>) -> [Tensor<D>; N] + Send>;

/// As [`Backward`], with no gradient for an input that gets none, or not yet.
pub(crate) type PartialBackward<const N: usize, const D: usize, const E: usize> =
    Box<dyn FnOnce(Tensor<E>) -> [Option<Tensor<D>>; N] + Send>;

/// Calls `forward`, and registers the backward that it returns with autodiff.
///
/// `forward` sees plain tensors and returns a plain one, in the order of `inputs`; so does its backward, which gives a
/// gradient for every input, in the shape and dtype of the input. Gradients of inputs that are not tracked are
/// dropped. If no input is tracked, the backward is dropped at once. Otherwise it runs at most once, and is dropped
/// with the graph. It must not touch the graph that it is part of.
///
/// # Panics
/// If autodiff recomputes by a checkpointing strategy of Burn's; in backward, if a gradient has another shape than
/// its input or lies on another device.
pub fn differentiable<const N: usize, const D: usize, const E: usize>(
    inputs: [Tensor<D>; N],
    forward: impl FnOnce([Tensor<D>; N]) -> (Tensor<E>, Backward<N, D, E>),
) -> Tensor<E> {
    partly_differentiable(inputs, |inputs| {
        let (output, backward) = forward(inputs);
        (output, Box::new(|gradient| backward(gradient).map(Some)))
    })
}

/// As [`differentiable`], where an input may get no gradient.
pub(crate) fn partly_differentiable<const N: usize, const D: usize, const E: usize>(
    inputs: [Tensor<D>; N],
    forward: impl FnOnce([Tensor<D>; N]) -> (Tensor<E>, PartialBackward<N, D, E>),
) -> Tensor<E> {
    let Some(tracked) = inputs.iter().find(|input| input.is_tracked()) else {
        let autodiff = inputs.iter().any(Tensor::is_autodiff);
        let (output, _) = forward(inputs.map(Tensor::inner));
        return if autodiff { output.autodiff() } else { output };
    };
    // Nothing of it is held while `forward` runs, which may then work on the inputs in place.
    let on_flex = {
        let DispatchTensorKind::Autodiff(kind) = tracked.clone().into_dispatch().kind else {
            unreachable!("a tracked tensor belongs to autodiff");
        };
        matches!(*kind, DispatchTensorKind::Flex(_))
    };
    #[cfg(feature = "cube")]
    if !on_flex {
        return on_backend::<burn::backend::Cube, N, D, E>(inputs, forward);
    }
    assert!(on_flex, "a tensor is on a device of this build");
    on_backend::<Flex, N, D, E>(inputs, forward)
}

fn on_backend<B, const N: usize, const D: usize, const E: usize>(
    inputs: [Tensor<D>; N],
    forward: impl FnOnce([Tensor<D>; N]) -> (Tensor<E>, PartialBackward<N, D, E>),
) -> Tensor<E>
where
    B: Backend,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    let shapes = inputs.each_ref().map(Tensor::dims);
    let inputs = inputs.map(|input| primitive::<Autodiff<B>, D>(input.autodiff()));
    let output = fused_op::<B, _, NoCheckpointing, N>(
        inputs,
        |inputs, keep| {
            let (output, backward) = forward(inputs.map(Tensor::from_primitive::<B>));
            (primitive::<B, E>(output.inner()), keep.then(|| Saved::new(shapes, backward)))
        },
        |saved, gradient, needed| {
            let gradients = saved.run(Tensor::from_primitive::<B>(gradient));
            let mut needed = needed.into_iter();
            gradients.map(|gradient| {
                let needed = needed.next().unwrap_or(false);
                gradient.filter(|_| needed).map(|gradient| primitive::<B, D>(gradient.inner()))
            })
        },
    );
    Tensor::from_primitive::<Autodiff<B>>(output)
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<D>) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    tensor.try_into_primitive::<B>().unwrap_or_else(|error| {
        panic!("a differentiable function has all its tensors on one device, and recomputes nothing: {error:?}")
    })
}

/// A backward and the shapes of its inputs. Autodiff asks for states that can be cloned, though it runs them once.
struct Saved<const N: usize, const D: usize, const E: usize> {
    shapes: [[usize; D]; N],
    backward: Arc<Mutex<Option<PartialBackward<N, D, E>>>>,
}

impl<const N: usize, const D: usize, const E: usize> Saved<N, D, E> {
    fn new(shapes: [[usize; D]; N], backward: PartialBackward<N, D, E>) -> Self {
        Self { shapes, backward: Arc::new(Mutex::new(Some(backward))) }
    }

    fn run(self, gradient: Tensor<E>) -> [Option<Tensor<D>>; N] {
        let backward = self.backward.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gradients = backward.expect("a graph runs backward once")(gradient);
        for (gradient, shape) in gradients.iter().zip(self.shapes) {
            let dims = gradient.as_ref().map_or(shape, Tensor::dims);
            assert_eq!(dims, shape, "gradients as inputs");
        }
        gradients
    }
}

impl<const N: usize, const D: usize, const E: usize> Clone for Saved<N, D, E> {
    fn clone(&self) -> Self {
        Self { shapes: self.shapes, backward: self.backward.clone() }
    }
}

impl<const N: usize, const D: usize, const E: usize> fmt::Debug for Saved<N, D, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a backward to {:?}", self.shapes)
    }
}
