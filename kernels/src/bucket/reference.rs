//! Packing and unpacking by plain tensor operations.

use burn::tensor::{DType, Tensor};

/// See [`super::pack`].
pub fn pack(tensors: &[Tensor<1>], dtype: DType, length: usize) -> Tensor<1> {
    let used: usize = tensors.iter().map(|tensor| tensor.dims()[0]).sum();
    let device = tensors.first().expect("a bucket holds at least one tensor").device();
    let padding = Tensor::zeros([length - used], (&device, dtype));
    let parts = tensors.iter().map(|tensor| tensor.clone().cast(dtype)).chain([padding]);
    Tensor::cat(parts.filter(|part| part.dims()[0] > 0).collect(), 0)
}

/// See [`super::unpack`].
pub fn unpack(bucket: Tensor<1>, lengths: &[usize], dtype: DType) -> Vec<Tensor<1>> {
    let starts = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end - length)
    });
    starts
        .zip(lengths)
        .map(|(start, n)| bucket.clone().slice(start..start + n).cast(dtype))
        .collect()
}
