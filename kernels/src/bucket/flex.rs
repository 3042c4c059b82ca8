//! Packing and unpacking on the CPU.

use std::ops::Range;

use burn::tensor::DType;
use burn_flex::FlexTensor;

use crate::flex::{Values, convert_in_parallel, owned, values_mut, with_number, zeros};

pub(super) fn write_into(bucket: FlexTensor, tensor: &FlexTensor, offset: usize) -> FlexTensor {
    with_number!(bucket.dtype(), B => {
        let mut bucket = owned::<B>(bucket);
        with_number!(tensor.dtype(), A => {
            let values = Values::<A>::new(tensor);
            convert_in_parallel(&values, &mut values_mut::<B>(&mut bucket)[offset..][..values.len()]);
        });
        bucket
    })
}

pub(super) fn read_from(bucket: &FlexTensor, range: Range<usize>, dtype: DType) -> FlexTensor {
    let mut tensor = zeros([range.len()].into(), dtype);
    with_number!(bucket.dtype(), A => with_number!(dtype, B => {
        convert_in_parallel(&Values::<A>::new(bucket)[range], values_mut::<B>(&mut tensor));
    }));
    tensor
}
