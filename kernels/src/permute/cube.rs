//! Rows by expert on CubeCL devices: a unit an element of a row, a cube an inner product.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{UNITS, cube_sum, cubes, element, elementwise, empty, indices, into_contiguous};

pub(super) fn take_rows(x: CubeTensor, slots: CubeTensor, weights: CubeTensor) -> CubeTensor {
    let (x, slots, weights) = (into_contiguous(x), indices(slots), into_contiguous(weights));
    let ([_, dim], [rows]) = (x.shape().dims(), slots.shape().dims());
    let output = empty(&x, [rows, dim], x.dtype());
    if rows * dim > 0 {
        let (count, units) = elementwise(rows * dim);
        let types = [element(&x), element(&weights)];
        let top_k = weights.shape()[1];
        kernel::take_rows::launch(
            &output.client,
            count,
            units,
            x.into_tensor_arg(),
            slots.into_tensor_arg(),
            weights.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            dim,
            top_k,
            types,
        );
    }
    output
}

pub(super) fn sum_rows(
    rows: CubeTensor,
    row_of_slot: CubeTensor,
    weights: CubeTensor,
) -> CubeTensor {
    let (rows, places, weights) =
        (into_contiguous(rows), indices(row_of_slot), into_contiguous(weights));
    let ([_, dim], [tokens, top_k]) = (rows.shape().dims(), weights.shape().dims());
    let output = empty(&rows, [tokens, dim], rows.dtype());
    if tokens * dim > 0 {
        let (count, units) = elementwise(tokens * dim);
        let types = [element(&rows), element(&weights)];
        kernel::sum_rows::launch(
            &output.client,
            count,
            units,
            rows.into_tensor_arg(),
            places.into_tensor_arg(),
            weights.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            dim,
            top_k,
            types,
        );
    }
    output
}

pub(super) fn slot_products(
    rows: CubeTensor,
    row_of_slot: CubeTensor,
    gradient: CubeTensor,
    top_k: usize,
) -> CubeTensor {
    let (rows, places, gradient) =
        (into_contiguous(rows), indices(row_of_slot), into_contiguous(gradient));
    let [tokens, dim] = gradient.shape().dims();
    let output = empty(&rows, [tokens, top_k], DType::F32);
    if tokens * top_k > 0 {
        let types = [element(&rows), element(&gradient)];
        kernel::slot_products::launch(
            &output.client,
            cubes(tokens * top_k),
            CubeDim::new_1d(UNITS as u32),
            rows.into_tensor_arg(),
            places.into_tensor_arg(),
            gradient.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            dim,
            top_k,
            types,
        );
    }
    output
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube(launch)]
    pub(super) fn take_rows<F: Float, W: Float>(
        x: &Tensor<F>,
        slots: &Tensor<i32>,
        weights: &Tensor<W>,
        output: &mut Tensor<F>,
        dim: usize,
        top_k: usize,
        #[define(F, W)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= output.len() {
            terminate!();
        }
        let slot = slots[ABSOLUTE_POS / dim] as usize;
        let value = f32::cast_from(x[slot / top_k * dim + ABSOLUTE_POS % dim]);
        output[ABSOLUTE_POS] = F::cast_from(f32::cast_from(weights[slot]) * value);
    }

    #[cube(launch)]
    pub(super) fn sum_rows<F: Float, W: Float>(
        rows: &Tensor<F>,
        places: &Tensor<i32>,
        weights: &Tensor<W>,
        output: &mut Tensor<F>,
        dim: usize,
        top_k: usize,
        #[define(F, W)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= output.len() {
            terminate!();
        }
        let first = ABSOLUTE_POS / dim * top_k;
        let mut sum = 0.0_f32;
        for slot in first..first + top_k {
            let row = places[slot] as usize;
            let value = f32::cast_from(rows[row * dim + ABSOLUTE_POS % dim]);
            sum += f32::cast_from(weights[slot]) * value;
        }
        output[ABSOLUTE_POS] = F::cast_from(sum);
    }

    #[cube(launch)]
    pub(super) fn slot_products<F: Float, G: Float>(
        rows: &Tensor<F>,
        places: &Tensor<i32>,
        gradient: &Tensor<G>,
        output: &mut Tensor<f32>,
        dim: usize,
        top_k: usize,
        #[define(F, G)] _types: [ElemType; 2],
    ) {
        let mut scratch = Shared::<[f32]>::new_slice(UNITS);
        let slot = CUBE_POS;
        if slot >= output.len() {
            terminate!();
        }
        let (row, token) = (places[slot] as usize * dim, slot / top_k * dim);
        let mut product = 0.0_f32;
        let mut column = UNIT_POS as usize;
        while column < dim {
            let value = f32::cast_from(rows[row + column]);
            product += value * f32::cast_from(gradient[token + column]);
            column += CUBE_DIM as usize;
        }
        let total = cube_sum(product, &mut scratch);
        if UNIT_POS == 0 {
            output[slot] = total;
        }
    }
}
