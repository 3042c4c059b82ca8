//! The sum of chunks on CubeCL devices, a unit an element.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{element, elementwise, empty, into_contiguous};

pub(super) fn reduce_chunks(chunks: CubeTensor, scale: f32, dtype: DType) -> CubeTensor {
    let chunks = into_contiguous(chunks);
    let [rows, length] = chunks.shape().dims();
    let output = empty(&chunks, [length], dtype);
    if length > 0 {
        let (count, units) = elementwise(length);
        let types = [element(&chunks), element(&output)];
        kernel::reduce_chunks::launch(
            &output.client,
            count,
            units,
            chunks.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            rows,
            scale,
            types,
        );
    }
    output
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube(launch)]
    pub(super) fn reduce_chunks<A: Float, B: Float>(
        chunks: &Tensor<A>,
        output: &mut Tensor<B>,
        rows: usize,
        scale: f32,
        #[define(A, B)] _types: [ElemType; 2],
    ) {
        let length = output.len();
        if ABSOLUTE_POS >= length {
            terminate!();
        }
        let mut sum = 0.0_f32;
        for row in 0..rows {
            sum += f32::cast_from(chunks[row * length + ABSOLUTE_POS]);
        }
        output[ABSOLUTE_POS] = B::cast_from(sum * scale);
    }
}
