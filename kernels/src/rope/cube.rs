//! RoPE on CubeCL devices: a unit a pair. `x` is read where it is, whatever its strides.

use burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{element, elementwise, empty, into_contiguous};

/// Rotates forward (`direction` 1) or back (-1).
pub(super) fn rotate(
    x: CubeTensor,
    cos: CubeTensor,
    sin: CubeTensor,
    direction: f32,
) -> CubeTensor {
    let (cos, sin) = (into_contiguous(cos), into_contiguous(sin));
    let output = empty(&x, x.shape(), x.dtype());
    let pairs = x.shape().num_elements() / 2;
    let types = [element(&x), element(&cos)];
    if pairs > 0 {
        let (count, units) = elementwise(pairs);
        kernel::rotate::launch(
            &output.client,
            count,
            units,
            x.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            direction,
            types,
        );
    }
    output
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube(launch)]
    pub(super) fn rotate<F: Float, T: Float>(
        x: &Tensor<F>,
        cos: &Tensor<T>,
        sin: &Tensor<T>,
        output: &mut Tensor<F>,
        direction: f32,
        #[define(F, T)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= output.len() / 2 {
            terminate!();
        }
        let (seq, heads, half) = (x.shape(1), x.shape(2), x.shape(3) / 2);
        let pair = ABSOLUTE_POS % half;
        let row = ABSOLUTE_POS / half;
        let token = row / heads;
        let angle = token * half + pair;
        let cos = f32::cast_from(cos[angle]);
        let sin = f32::cast_from(sin[angle]) * direction;
        let first = token / seq * x.stride(0)
            + token % seq * x.stride(1)
            + row % heads * x.stride(2)
            + pair * x.stride(3);
        let x0 = f32::cast_from(x[first]);
        let x1 = f32::cast_from(x[first + half * x.stride(3)]);
        let to = row * half * 2 + pair;
        output[to] = F::cast_from(x0 * cos - x1 * sin);
        output[to + half] = F::cast_from(x1 * cos + x0 * sin);
    }
}
