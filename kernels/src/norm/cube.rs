//! The sum of squares on CubeCL devices: a cube a part, then one cube over the parts.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{UNITS, assert_countable, cube_sum, cubes, element, empty, into_contiguous};

/// Least elements that a unit adds up before the cube does.
const ELEMENTS_A_UNIT: usize = 16;

/// Most parts.
const MAX_PARTS: usize = 1024;

pub(super) fn sum_of_squares(x: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    let parts = x.shape().num_elements().div_ceil(UNITS * ELEMENTS_A_UNIT).clamp(1, MAX_PARTS);
    let partial = empty(&x, [parts], DType::F32);
    let total = empty(&x, [1], DType::F32);
    let units = CubeDim::new_1d(UNITS as u32);
    let dtype = element(&x);
    let n = x.shape().num_elements();
    assert_countable(n);
    kernel::square_parts::launch(
        &total.client,
        cubes(parts),
        units,
        x.into_tensor_arg(),
        partial.clone().into_tensor_arg(),
        n,
        dtype,
    );
    kernel::sum_parts::launch(
        &total.client,
        cubes(1),
        units,
        partial.into_tensor_arg(),
        total.clone().into_tensor_arg(),
    );
    total
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// Cube `c` of `parts` takes the runs of `CUBE_DIM` elements `c, c + parts, c + 2 parts, ..`.
    #[cube(launch)]
    pub(super) fn square_parts<F: Float>(
        x: &Tensor<F>,
        partial: &mut Tensor<f32>,
        n: usize,
        #[define(F)] _type: ElemType,
    ) {
        let mut scratch = Shared::<[f32]>::new_slice(UNITS);
        let mut sum = 0.0_f32;
        let mut i = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
        while i < n {
            let value = f32::cast_from(x[i]);
            sum += value * value;
            i += partial.len() * CUBE_DIM as usize;
        }
        let total = cube_sum(sum, &mut scratch);
        if UNIT_POS == 0 {
            partial[CUBE_POS] = total;
        }
    }

    #[cube(launch)]
    pub(super) fn sum_parts(partial: &Tensor<f32>, total: &mut Tensor<f32>) {
        let mut scratch = Shared::<[f32]>::new_slice(UNITS);
        let mut sum = 0.0_f32;
        let mut i = UNIT_POS as usize;
        while i < partial.len() {
            sum += partial[i];
            i += CUBE_DIM as usize;
        }
        let sum = cube_sum(sum, &mut scratch);
        if UNIT_POS == 0 {
            total[0] = sum;
        }
    }
}
