//! SwiGLU on CubeCL devices: a unit an element. The equations are those of `flex.rs`.

use burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{element, elementwise, empty, into_contiguous};

pub(super) fn forward(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let (gate, up) = (into_contiguous(gate), into_contiguous(up));
    let output = empty(&gate, gate.shape(), gate.dtype());
    let elements = gate.shape().num_elements();
    let dtype = element(&gate);
    if elements > 0 {
        let (count, units) = elementwise(elements);
        kernel::forward::launch(
            &output.client,
            count,
            units,
            gate.into_tensor_arg(),
            up.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            dtype,
        );
    }
    output
}

/// The gradients of `gate` and of `up`.
pub(super) fn backward(
    gate: CubeTensor,
    up: CubeTensor,
    gradient: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let (gate, up, gradient) =
        (into_contiguous(gate), into_contiguous(up), into_contiguous(gradient));
    let d_gate = empty(&gate, gate.shape(), gate.dtype());
    let d_up = empty(&up, up.shape(), up.dtype());
    let elements = gate.shape().num_elements();
    let dtype = element(&gate);
    if elements > 0 {
        let (count, units) = elementwise(elements);
        kernel::backward::launch(
            &d_gate.client,
            count,
            units,
            gate.into_tensor_arg(),
            up.into_tensor_arg(),
            gradient.into_tensor_arg(),
            d_gate.clone().into_tensor_arg(),
            d_up.clone().into_tensor_arg(),
            dtype,
        );
    }
    (d_gate, d_up)
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube]
    fn sigmoid(x: f32) -> f32 {
        1.0 / (1.0 + (-x).exp())
    }

    #[cube(launch)]
    pub(super) fn forward<F: Float>(
        gate: &Tensor<F>,
        up: &Tensor<F>,
        output: &mut Tensor<F>,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= output.len() {
            terminate!();
        }
        let a = f32::cast_from(gate[ABSOLUTE_POS]);
        let b = f32::cast_from(up[ABSOLUTE_POS]);
        output[ABSOLUTE_POS] = F::cast_from(a * sigmoid(a) * b);
    }

    #[cube(launch)]
    pub(super) fn backward<F: Float>(
        gate: &Tensor<F>,
        up: &Tensor<F>,
        gradient: &Tensor<F>,
        d_gate: &mut Tensor<F>,
        d_up: &mut Tensor<F>,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= d_gate.len() {
            terminate!();
        }
        let a = f32::cast_from(gate[ABSOLUTE_POS]);
        let b = f32::cast_from(up[ABSOLUTE_POS]);
        let dy = f32::cast_from(gradient[ABSOLUTE_POS]);
        let s = sigmoid(a);
        d_gate[ABSOLUTE_POS] = F::cast_from(dy * b * s * (1.0 + a * (1.0 - s)));
        d_up[ABSOLUTE_POS] = F::cast_from(dy * a * s);
    }
}
