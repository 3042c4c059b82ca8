//! RMSNorm on CubeCL devices: a cube a row forward, and for `dx`; `dweight` by columns over blocks of
//! rows, then over the blocks. The equations are those of `flex.rs`.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{UNITS, cube_sum, cubes, element, elementwise, empty, into_contiguous};

/// Most partial sums of `dweight` a column.
const MAX_BLOCKS: usize = 64;

pub(super) fn forward(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let output = empty(&x, x.shape(), x.dtype());
    let dim = weight.shape()[0];
    let rows = x.shape().num_elements() / dim.max(1);
    if rows > 0 {
        let types = [element(&x), element(&weight)];
        kernel::forward::launch(
            &output.client,
            cubes(rows),
            CubeDim::new_1d(UNITS as u32),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            rows,
            eps,
            types,
        );
    }
    output
}

/// The gradients of `x` and of `weight`.
pub(super) fn backward(
    x: CubeTensor,
    weight: CubeTensor,
    eps: f32,
    gradient: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let (x, weight, gradient) =
        (into_contiguous(x), into_contiguous(weight), into_contiguous(gradient));
    let dim = weight.shape()[0];
    let rows = x.shape().num_elements() / dim.max(1);
    let dx = empty(&x, x.shape(), x.dtype());
    let d_weight = empty(&x, weight.shape(), weight.dtype());
    let inverse_rms = empty(&x, [rows], DType::F32);
    let rows_a_block = rows.div_ceil(MAX_BLOCKS).max(1);
    let blocks = rows.div_ceil(rows_a_block);
    let partial = empty(&x, [blocks, dim], DType::F32);
    let types = [element(&x), element(&weight)];
    let client = x.client.clone();
    if rows > 0 {
        kernel::backward_rows::launch(
            &client,
            cubes(rows),
            CubeDim::new_1d(UNITS as u32),
            x.clone().into_tensor_arg(),
            weight.into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            inverse_rms.clone().into_tensor_arg(),
            rows,
            eps,
            types,
        );
        let (count, units) = elementwise(blocks * dim);
        kernel::backward_blocks::launch(
            &client,
            count,
            units,
            x.into_tensor_arg(),
            gradient.into_tensor_arg(),
            inverse_rms.into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            dim,
            rows,
            rows_a_block,
            types[0],
        );
    }
    let (count, units) = elementwise(dim);
    kernel::sum_blocks::launch(
        &client,
        count,
        units,
        partial.into_tensor_arg(),
        d_weight.clone().into_tensor_arg(),
        dim,
        blocks,
        types[1],
    );
    (dx, d_weight)
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// `1 / sqrt(mean(x^2) + eps)` of the row that starts at `start`.
    #[cube]
    fn inverse_rms<F: Float>(
        x: &Tensor<F>,
        start: usize,
        dim: usize,
        eps: f32,
        scratch: &mut Shared<[f32]>,
    ) -> f32 {
        let mut squares = 0.0_f32;
        let mut i = UNIT_POS as usize;
        while i < dim {
            let value = f32::cast_from(x[start + i]);
            squares += value * value;
            i += CUBE_DIM as usize;
        }
        let mean = cube_sum(squares, scratch) / f32::cast_from(dim);
        1.0 / (mean + eps).sqrt()
    }

    #[cube(launch)]
    pub(super) fn forward<F: Float, W: Float>(
        x: &Tensor<F>,
        weight: &Tensor<W>,
        output: &mut Tensor<F>,
        rows: usize,
        eps: f32,
        #[define(F, W)] _types: [ElemType; 2],
    ) {
        let mut scratch = Shared::<[f32]>::new_slice(UNITS);
        let row = CUBE_POS;
        if row >= rows {
            terminate!();
        }
        let dim = weight.len();
        let start = row * dim;
        let r = inverse_rms::<F>(x, start, dim, eps, &mut scratch);
        let mut i = UNIT_POS as usize;
        while i < dim {
            let value = f32::cast_from(x[start + i]) * r * f32::cast_from(weight[i]);
            output[start + i] = F::cast_from(value);
            i += CUBE_DIM as usize;
        }
    }

    #[cube(launch)]
    pub(super) fn backward_rows<F: Float, W: Float>(
        x: &Tensor<F>,
        weight: &Tensor<W>,
        gradient: &Tensor<F>,
        dx: &mut Tensor<F>,
        inverse: &mut Tensor<f32>,
        rows: usize,
        eps: f32,
        #[define(F, W)] _types: [ElemType; 2],
    ) {
        let mut scratch = Shared::<[f32]>::new_slice(UNITS);
        let row = CUBE_POS;
        if row >= rows {
            terminate!();
        }
        let dim = weight.len();
        let start = row * dim;
        let r = inverse_rms::<F>(x, start, dim, eps, &mut scratch);
        let mut pull = 0.0_f32;
        let mut i = UNIT_POS as usize;
        while i < dim {
            let g = f32::cast_from(gradient[start + i]) * f32::cast_from(weight[i]);
            pull += g * f32::cast_from(x[start + i]);
            i += CUBE_DIM as usize;
        }
        let pull = r * r * cube_sum(pull, &mut scratch) / f32::cast_from(dim);
        let mut i = UNIT_POS as usize;
        while i < dim {
            let g = f32::cast_from(gradient[start + i]) * f32::cast_from(weight[i]);
            dx[start + i] = F::cast_from(r * (g - f32::cast_from(x[start + i]) * pull));
            i += CUBE_DIM as usize;
        }
        if UNIT_POS == 0 {
            inverse[row] = r;
        }
    }

    /// A unit sums one column over one block of rows.
    #[cube(launch)]
    pub(super) fn backward_blocks<F: Float>(
        x: &Tensor<F>,
        gradient: &Tensor<F>,
        inverse: &Tensor<f32>,
        partial: &mut Tensor<f32>,
        dim: usize,
        rows: usize,
        rows_a_block: usize,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= partial.len() {
            terminate!();
        }
        let column = ABSOLUTE_POS % dim;
        let first = ABSOLUTE_POS / dim * rows_a_block;
        let end = clamp_max(first + rows_a_block, rows);
        let mut sum = 0.0_f32;
        for row in first..end {
            let i = row * dim + column;
            sum += f32::cast_from(gradient[i]) * f32::cast_from(x[i]) * inverse[row];
        }
        partial[ABSOLUTE_POS] = sum;
    }

    #[cube(launch)]
    pub(super) fn sum_blocks<W: Float>(
        partial: &Tensor<f32>,
        d_weight: &mut Tensor<W>,
        dim: usize,
        blocks: usize,
        #[define(W)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= dim {
            terminate!();
        }
        let mut sum = 0.0_f32;
        for block in 0..blocks {
            sum += partial[block * dim + ABSOLUTE_POS];
        }
        d_weight[ABSOLUTE_POS] = W::cast_from(sum);
    }
}
