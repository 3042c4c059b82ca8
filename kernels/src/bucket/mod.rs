//! Many flat tensors in one flat bucket, with a cast on the way: what a collective sends at once.
//!
//! Each tensor is read once and written once, straight into its place. Where `unpack` has no cast to do
//! it gives parts of the bucket itself, without a copy where the device can address them.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

/// The dispatched steps of [`pack`] and [`unpack`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait BucketOps: Backend {
    /// A tensor `[length]` with undefined contents on the device of `like`.
    #[fusion(meta = |_, length, dtype| {
        burn::backend::fusion::custom::TensorSpec::new([*length].into(), *dtype)
    })]
    fn new_bucket(like: FloatTensor<Self>, length: usize, dtype: DType) -> FloatTensor<Self>;

    /// The bucket with `tensor`, cast, from `offset` on. A bucket that no one else holds is changed in
    /// place.
    #[fusion(meta = |bucket, _, _| bucket.clone())]
    fn write_into_bucket(
        bucket: FloatTensor<Self>,
        tensor: FloatTensor<Self>,
        offset: usize,
    ) -> FloatTensor<Self>;

    /// `length` elements of the bucket from `offset` on, cast.
    #[fusion(meta = |_, _, length, dtype| {
        burn::backend::fusion::custom::TensorSpec::new([*length].into(), *dtype)
    })]
    fn read_from_bucket(
        bucket: FloatTensor<Self>,
        offset: usize,
        length: usize,
        dtype: DType,
    ) -> FloatTensor<Self>;
}

impl BucketOps for Flex {
    fn new_bucket(_: FloatTensor<Self>, length: usize, dtype: DType) -> FloatTensor<Self> {
        crate::flex::zeros([length].into(), dtype)
    }

    fn write_into_bucket(
        bucket: FloatTensor<Self>,
        tensor: FloatTensor<Self>,
        offset: usize,
    ) -> FloatTensor<Self> {
        flex::write_into(bucket, &tensor, offset)
    }

    fn read_from_bucket(
        bucket: FloatTensor<Self>,
        offset: usize,
        length: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        flex::read_from(&bucket, offset..offset + length, dtype)
    }
}

#[cfg(feature = "cube")]
impl BucketOps for burn_cubecl::CubeBackend {
    fn new_bucket(like: FloatTensor<Self>, length: usize, dtype: DType) -> FloatTensor<Self> {
        crate::cube::empty(&like, [length], dtype)
    }

    fn write_into_bucket(
        bucket: FloatTensor<Self>,
        tensor: FloatTensor<Self>,
        offset: usize,
    ) -> FloatTensor<Self> {
        cube::write_into(bucket, tensor, offset)
    }

    fn read_from_bucket(
        bucket: FloatTensor<Self>,
        offset: usize,
        length: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        cube::read_from(bucket, offset, length, dtype)
    }
}

/// The tensors one after the other, cast to `dtype`, with zeros up to `length`: `[length]`. The tensors
/// are f32, f16 or bf16, in any mixture, and not tracked.
///
/// # Panics
/// If there is no tensor, or if they do not fit into `length`.
pub fn pack(tensors: &[Tensor<1>], dtype: DType, length: usize) -> Tensor<1> {
    let first = tensors.first().expect("a bucket holds at least one tensor");
    let used: usize = tensors.iter().map(|tensor| tensor.dims()[0]).sum();
    assert!(used <= length, "{used} elements do not fit into a bucket of {length}");
    let bucket = first.clone().into_dispatch();
    let mut bucket = <Dispatch as BucketOps>::new_bucket(bucket, length, dtype);
    let padding = Tensor::zeros([length - used], (&first.device(), dtype));
    let mut offset = 0;
    for tensor in tensors.iter().chain([&padding]) {
        let part = tensor.clone().into_dispatch();
        bucket = <Dispatch as BucketOps>::write_into_bucket(bucket, part, offset);
        offset += tensor.dims()[0];
    }
    Tensor::from_dispatch(bucket)
}

/// The first elements of the bucket as tensors of the given lengths, cast to `dtype`; what is left over
/// is padding.
///
/// # Panics
/// If the bucket is shorter than the sum of the lengths.
pub fn unpack(bucket: Tensor<1>, lengths: &[usize], dtype: DType) -> Vec<Tensor<1>> {
    let (used, length) = (lengths.iter().sum::<usize>(), bucket.dims()[0]);
    assert!(used <= length, "a bucket of {length} does not hold {used} elements");
    let mut offset = 0;
    let part = |length: &usize| {
        let start = offset;
        offset += length;
        if bucket.dtype() == dtype {
            return bucket.clone().slice(start..offset);
        }
        let bucket = bucket.clone().into_dispatch();
        let part = <Dispatch as BucketOps>::read_from_bucket(bucket, start, *length, dtype);
        Tensor::from_dispatch(part)
    };
    lengths.iter().map(part).collect()
}
