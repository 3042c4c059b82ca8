//! Token embedding on CubeCL devices, without atomics and without reading the ids back.
//!
//! Backward: each token looks for the next one with its id and tells it that it is not the first. Then
//! the first token of each id walks along its chain and writes the row of that id. The search reads ids
//! only and stops at the first hit; the last token of each id searches to the end, so that it takes
//! `tokens x distinct ids` reads at most, spread over the units.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{UNITS, cubes, element, elementwise, empty, indices, into_contiguous, zeros};

pub(super) fn forward(weight: CubeTensor, ids: CubeTensor) -> CubeTensor {
    let (weight, ids) = (into_contiguous(weight), indices(ids));
    let [batch, seq] = ids.shape().dims();
    let [_, dim] = weight.shape().dims();
    let output = empty(&weight, [batch, seq, dim], weight.dtype());
    let n = batch * seq * dim;
    if n > 0 {
        let (count, units) = elementwise(n);
        let dtype = element(&weight);
        kernel::forward::launch(
            &output.client,
            count,
            units,
            weight.into_tensor_arg(),
            ids.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            dim,
            dtype,
        );
    }
    output
}

/// The gradient of the weight.
pub(super) fn backward(gradient: CubeTensor, ids: CubeTensor, vocab: usize) -> CubeTensor {
    let (gradient, ids) = (into_contiguous(gradient), indices(ids));
    let [batch, seq, dim] = gradient.shape().dims();
    let tokens = batch * seq;
    let d_weight = zeros(&gradient, [vocab, dim], gradient.dtype());
    if tokens * vocab * dim == 0 {
        return d_weight;
    }
    let next = empty(&gradient, [tokens], DType::U32);
    let follows = zeros(&gradient, [tokens], DType::U32);
    let (count, units) = elementwise(tokens);
    kernel::link::launch(
        &d_weight.client,
        count,
        units,
        ids.clone().into_tensor_arg(),
        next.clone().into_tensor_arg(),
        follows.clone().into_tensor_arg(),
    );
    let dtype = element(&gradient);
    kernel::sum_chains::launch(
        &d_weight.client,
        cubes(tokens),
        CubeDim::new_1d(UNITS as u32),
        gradient.into_tensor_arg(),
        ids.into_tensor_arg(),
        next.into_tensor_arg(),
        follows.into_tensor_arg(),
        d_weight.clone().into_tensor_arg(),
        dim,
        dtype,
    );
    d_weight
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube]
    fn is_row(id: i32, vocab: usize) -> bool {
        id >= 0 && (id as usize) < vocab
    }

    #[cube(launch)]
    pub(super) fn forward<F: Float>(
        weight: &Tensor<F>,
        ids: &Tensor<i32>,
        output: &mut Tensor<F>,
        dim: usize,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= output.len() {
            terminate!();
        }
        let id = ids[ABSOLUTE_POS / dim];
        let mut value = F::cast_from(0.0_f32);
        if is_row(id, weight.len() / dim) {
            value = weight[id as usize * dim + ABSOLUTE_POS % dim];
        }
        output[ABSOLUTE_POS] = value;
    }

    /// The token after this one that has the same id, or the number of tokens. No token follows two, so
    /// that every place of `follows` has one writer.
    #[cube(launch)]
    pub(super) fn link(ids: &Tensor<i32>, next: &mut Tensor<u32>, follows: &mut Tensor<u32>) {
        let tokens = ids.len();
        if ABSOLUTE_POS >= tokens {
            terminate!();
        }
        let id = ids[ABSOLUTE_POS];
        let mut candidate = ABSOLUTE_POS + 1;
        let mut found = false;
        while candidate < tokens && !found {
            if ids[candidate] == id {
                found = true;
                follows[candidate] = 1;
            } else {
                candidate += 1;
            }
        }
        next[ABSOLUTE_POS] = candidate as u32;
    }

    /// A cube a token: the first of its id sums the rows of its chain, a unit a column.
    #[cube(launch)]
    pub(super) fn sum_chains<F: Float>(
        gradient: &Tensor<F>,
        ids: &Tensor<i32>,
        next: &Tensor<u32>,
        follows: &Tensor<u32>,
        d_weight: &mut Tensor<F>,
        dim: usize,
        #[define(F)] _type: ElemType,
    ) {
        let tokens = ids.len();
        if CUBE_POS >= tokens {
            terminate!();
        }
        let id = ids[CUBE_POS];
        if follows[CUBE_POS] == 0 && is_row(id, d_weight.len() / dim) {
            let mut column = UNIT_POS as usize;
            while column < dim {
                let mut sum = 0.0_f32;
                let mut token = CUBE_POS;
                while token < tokens {
                    sum += f32::cast_from(gradient[token * dim + column]);
                    token = next[token] as usize;
                }
                d_weight[id as usize * dim + column] = F::cast_from(sum);
                column += CUBE_DIM as usize;
            }
        }
    }
}
