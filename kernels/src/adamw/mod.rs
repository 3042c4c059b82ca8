//! AdamW in one pass over parameter, gradient and both moments (Loshchilov and Hutter, 2019).
//!
//! With `g = gradient_scale * gradient`, at step `t` from 1:
//! `p *= 1 - lr weight_decay`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
//! `p -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)`.
//!
//! A tensor that is given up (not cloned elsewhere) is updated in place.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

/// The numbers of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The step's number, from 1, for the bias correction.
    pub step: u64,
    /// Factor on the gradient, as clipping gives it.
    pub gradient_scale: f64,
}

/// The step's numbers in f32, with all that does not depend on the element worked out.
struct Numbers {
    step_size: f32,
    root_correction: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
    gradient_scale: f32,
}

impl From<AdamwStep> for Numbers {
    fn from(s: AdamwStep) -> Self {
        let t = s.step as f64;
        Self {
            step_size: (s.lr / (1.0 - s.beta1.powf(t))) as f32,
            root_correction: (1.0 / (1.0 - s.beta2.powf(t))).sqrt() as f32,
            keep: (1.0 - s.lr * s.weight_decay) as f32,
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            rest1: (1.0 - s.beta1) as f32,
            rest2: (1.0 - s.beta2) as f32,
            eps: s.eps as f32,
            gradient_scale: s.gradient_scale as f32,
        }
    }
}

/// The dispatched forms of [`adamw`] and [`adamw_with_copy`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait AdamwOps: Backend {
    /// See [`adamw`]. Returns the parameter, the first moment and the second.
    #[fusion(meta = |parameter, _, first, second, _| {
        (parameter.clone(), first.clone(), second.clone())
    })]
    fn fused_adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`adamw_with_copy`]. Returns the parameter, the first moment, the second, and the copy.
    #[fusion(meta = |parameter, _, first, second, _, copy_dtype| {
        let mut copy = parameter.clone();
        copy.dtype = *copy_dtype;
        (parameter.clone(), first.clone(), second.clone(), copy)
    })]
    fn fused_adamw_with_copy(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
        copy_dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl AdamwOps for Flex {
    fn fused_adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [p, m, v] = flex::adamw([parameter, first_moment, second_moment], &gradient, step);
        (p, m, v)
    }

    fn fused_adamw_with_copy(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
        copy_dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let state = [parameter, first_moment, second_moment];
        let ([p, m, v], copy) = flex::adamw_with_copy(state, &gradient, step, copy_dtype);
        (p, m, v, copy)
    }
}

#[cfg(feature = "cube")]
impl AdamwOps for burn_cubecl::CubeBackend {
    fn fused_adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [p, m, v] = cube::adamw([parameter, first_moment, second_moment], gradient, step);
        (p, m, v)
    }

    fn fused_adamw_with_copy(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first_moment: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdamwStep,
        copy_dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let state = [parameter, first_moment, second_moment];
        let ([p, m, v], copy) = cube::adamw_with_copy(state, gradient, step, copy_dtype);
        (p, m, v, copy)
    }
}

/// One AdamW step; returns the new parameter, first moment and second moment.
///
/// All are `[n]` and not tracked. Parameter and moments are f32, the gradient is of any float dtype.
///
/// # Panics
/// If the parameter or a moment is not f32, or the lengths differ.
pub fn adamw(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    step: AdamwStep,
) -> [Tensor<1>; 3] {
    check(&parameter, &gradient, [&first_moment, &second_moment]);
    let (parameter, first, second) = <Dispatch as AdamwOps>::fused_adamw(
        parameter.into_dispatch(),
        gradient.into_dispatch(),
        first_moment.into_dispatch(),
        second_moment.into_dispatch(),
        step,
    );
    [parameter, first, second].map(Tensor::from_dispatch)
}

/// [`adamw`], and in the same pass the new parameter rounded to `copy_dtype` (bf16 or f16): what the next
/// forward computes with.
///
/// # Panics
/// As [`adamw`].
pub fn adamw_with_copy(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    step: AdamwStep,
    copy_dtype: DType,
) -> ([Tensor<1>; 3], Tensor<1>) {
    check(&parameter, &gradient, [&first_moment, &second_moment]);
    let (parameter, first, second, copy) = <Dispatch as AdamwOps>::fused_adamw_with_copy(
        parameter.into_dispatch(),
        gradient.into_dispatch(),
        first_moment.into_dispatch(),
        second_moment.into_dispatch(),
        step,
        copy_dtype,
    );
    ([parameter, first, second].map(Tensor::from_dispatch), Tensor::from_dispatch(copy))
}

fn check(parameter: &Tensor<1>, gradient: &Tensor<1>, moments: [&Tensor<1>; 2]) {
    let [first, second] = moments;
    for tensor in [parameter, first, second] {
        assert_eq!(tensor.dtype(), DType::F32, "AdamW keeps its state in f32");
        assert_eq!(tensor.dims(), gradient.dims(), "AdamW's tensors have one length");
    }
}
