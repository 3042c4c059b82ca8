//! Packing and unpacking on CubeCL devices: a launch a tensor, a unit an element.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{element, elementwise, empty, into_contiguous, owned};

pub(super) fn write_into(bucket: CubeTensor, tensor: CubeTensor, offset: usize) -> CubeTensor {
    let (bucket, tensor) = (owned(bucket), into_contiguous(tensor));
    copy(tensor, 0, bucket.clone(), offset, None);
    bucket
}

pub(super) fn read_from(
    bucket: CubeTensor,
    offset: usize,
    length: usize,
    dtype: DType,
) -> CubeTensor {
    let bucket = into_contiguous(bucket);
    let tensor = empty(&bucket, [length], dtype);
    copy(bucket, offset, tensor.clone(), 0, Some(length));
    tensor
}

/// Copies `length` elements, or all of `from`, with a cast.
fn copy(
    from: CubeTensor,
    from_offset: usize,
    to: CubeTensor,
    to_offset: usize,
    length: Option<usize>,
) {
    let length = length.unwrap_or(from.shape().num_elements());
    if length == 0 {
        return;
    }
    let (count, units) = elementwise(length);
    let types = [element(&from), element(&to)];
    kernel::copy::launch(
        &to.client.clone(),
        count,
        units,
        from.into_tensor_arg(),
        to.into_tensor_arg(),
        from_offset,
        to_offset,
        length,
        types,
    );
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube(launch)]
    pub(super) fn copy<A: Float, B: Float>(
        from: &Tensor<A>,
        to: &mut Tensor<B>,
        from_offset: usize,
        to_offset: usize,
        length: usize,
        #[define(A, B)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= length {
            terminate!();
        }
        to[to_offset + ABSOLUTE_POS] = B::cast_from(from[from_offset + ABSOLUTE_POS]);
    }
}
