//! AdamW on CubeCL devices, a unit an element, in place: four buffers, or five with the copy.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{AdamwStep, Numbers};
use crate::cube::{element, elementwise, empty, into_contiguous, owned};

pub(super) fn adamw(
    state: [CubeTensor; 3],
    gradient: CubeTensor,
    step: AdamwStep,
) -> [CubeTensor; 3] {
    let [parameter, first, second] = state.map(owned);
    let n = parameter.shape().num_elements();
    if n > 0 {
        let gradient = into_contiguous(gradient);
        let (count, units) = elementwise(n);
        let dtype = element(&gradient);
        kernel::adamw::launch(
            &parameter.client,
            count,
            units,
            parameter.clone().into_tensor_arg(),
            first.clone().into_tensor_arg(),
            second.clone().into_tensor_arg(),
            gradient.into_tensor_arg(),
            numbers(step),
            dtype,
        );
    }
    [parameter, first, second]
}

/// The same, and the new parameter in the dtype `copy`.
pub(super) fn adamw_with_copy(
    state: [CubeTensor; 3],
    gradient: CubeTensor,
    step: AdamwStep,
    copy: DType,
) -> ([CubeTensor; 3], CubeTensor) {
    let [parameter, first, second] = state.map(owned);
    let low = empty(&parameter, parameter.shape(), copy);
    let n = parameter.shape().num_elements();
    if n > 0 {
        let gradient = into_contiguous(gradient);
        let (count, units) = elementwise(n);
        let types = [element(&gradient), element(&low)];
        kernel::adamw_with_copy::launch(
            &parameter.client,
            count,
            units,
            parameter.clone().into_tensor_arg(),
            first.clone().into_tensor_arg(),
            second.clone().into_tensor_arg(),
            gradient.into_tensor_arg(),
            low.clone().into_tensor_arg(),
            numbers(step),
            types,
        );
    }
    ([parameter, first, second], low)
}

fn numbers(step: AdamwStep) -> kernel::NumbersLaunch {
    let n = Numbers::from(step);
    kernel::NumbersLaunch::new(
        n.step_size,
        n.root_correction,
        n.keep,
        n.beta1,
        n.beta2,
        n.rest1,
        n.rest2,
        n.eps,
        n.gradient_scale,
    )
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// [`super::Numbers`] in a kernel.
    #[derive(CubeType, CubeLaunch)]
    pub(super) struct Numbers {
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

    #[cube]
    fn update<G: Float>(
        parameter: &mut Tensor<f32>,
        first: &mut Tensor<f32>,
        second: &mut Tensor<f32>,
        gradient: &Tensor<G>,
        n: &Numbers,
    ) -> f32 {
        let i = ABSOLUTE_POS;
        let g = f32::cast_from(gradient[i]) * n.gradient_scale;
        let m = n.beta1 * first[i] + n.rest1 * g;
        let v = n.beta2 * second[i] + n.rest2 * g * g;
        let p = parameter[i] * n.keep - n.step_size * m / (v.sqrt() * n.root_correction + n.eps);
        first[i] = m;
        second[i] = v;
        parameter[i] = p;
        p
    }

    #[cube(launch)]
    pub(super) fn adamw<G: Float>(
        parameter: &mut Tensor<f32>,
        first: &mut Tensor<f32>,
        second: &mut Tensor<f32>,
        gradient: &Tensor<G>,
        numbers: &Numbers,
        #[define(G)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= gradient.len() {
            terminate!();
        }
        update::<G>(parameter, first, second, gradient, numbers);
    }

    #[cube(launch)]
    pub(super) fn adamw_with_copy<G: Float, L: Float>(
        parameter: &mut Tensor<f32>,
        first: &mut Tensor<f32>,
        second: &mut Tensor<f32>,
        gradient: &Tensor<G>,
        low: &mut Tensor<L>,
        numbers: &Numbers,
        #[define(G, L)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= gradient.len() {
            terminate!();
        }
        let value = update::<G>(parameter, first, second, gradient, numbers);
        low[ABSOLUTE_POS] = L::cast_from(value);
    }
}
