use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};
use burn_titan_kernels::bucket::{BucketOps, pack, reference, unpack};
use proptest::prelude::*;

use crate::support::{assert_same, devices, noise, values};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Tensors of the given lengths, of all dtypes that the device has in turn.
fn tensors(lengths: &[usize], device: &Device) -> Vec<Tensor<1>> {
    let dtypes: Vec<_> = DTYPES.into_iter().filter(|d| device.supports_dtype(*d)).collect();
    let tensor = |(i, n): (usize, &usize)| {
        noise([*n], i as u64).to_device(device).cast(dtypes[i % dtypes.len()])
    };
    lengths.iter().enumerate().map(tensor).collect()
}

fn check(lengths: &[usize], padding: usize) {
    for device in devices() {
        let tensors = tensors(lengths, &device);
        for dtype in DTYPES.into_iter().filter(|d| device.supports_dtype(*d)) {
            check_one(&tensors, lengths, padding, dtype, &device);
        }
    }
}

fn check_one(
    tensors: &[Tensor<1>],
    lengths: &[usize],
    padding: usize,
    dtype: DType,
    device: &Device,
) {
    let length = lengths.iter().sum::<usize>() + padding;
    let name = format!("{lengths:?} + {padding} in {dtype:?} on {device:?}");
    let bucket = pack(tensors, dtype, length);
    assert_eq!((bucket.dtype(), bucket.dims()), (dtype, [length]), "{name}");
    if length > 0 {
        let want = values(reference::pack(tensors, dtype, length));
        assert_same(&values(bucket.clone()), &want, &name);
    }
    for to in DTYPES.into_iter().filter(|d| device.supports_dtype(*d)) {
        let got = unpack(bucket.clone(), lengths, to);
        assert_eq!(got.len(), lengths.len());
        let want = reference::unpack(bucket.clone(), lengths, to);
        for (got, want) in got.into_iter().zip(want) {
            assert_eq!((got.dtype(), got.dims()), (to, want.dims()), "{name}");
            assert_same(&values(got), &values(want), &format!("{name} to {to:?}"));
        }
    }
}

#[test]
fn every_tensor_comes_to_its_place_and_back() {
    check(&[1], 0);
    check(&[0], 0);
    check(&[0, 17, 0], 3);
    check(&[17, 1, 1009, 64, 3], 0);
    check(&[70_001, 33], 11);
}

#[test]
fn inputs_need_not_be_contiguous() {
    for device in devices() {
        let column = |i| noise([37, 5], 1).to_device(&device).narrow(1, i, 1).reshape([37]);
        let parts = [column(1), column(4), noise([50], 2).to_device(&device).narrow(0, 13, 21)];
        let want = values(reference::pack(&parts, DType::F16, 100));
        assert_same(&values(pack(&parts, DType::F16, 100)), &want, &format!("{device:?}"));
    }
}

/// Parts that were unpacked without a cast hold the bucket: writing into it makes a new one.
#[test]
fn unpacked_parts_do_not_change_with_the_bucket() {
    for device in devices() {
        let x = noise([300], 4).to_device(&device);
        let bucket = pack(std::slice::from_ref(&x), DType::F32, 300);
        let parts = unpack(bucket.clone(), &[128, 172], DType::F32);
        let ones = Tensor::<1>::ones([172], &device).into_dispatch();
        let written = Dispatch::write_into_bucket(bucket.into_dispatch(), ones, 128);
        let name = format!("{device:?}");
        assert_same(&values(parts[1].clone()), &values(x)[128..], &name);
        assert_same(&values(Tensor::<1>::from_dispatch(written))[128..], &[1.0; 172], &name);
    }
}

#[test]
#[should_panic(expected = "3 elements do not fit into a bucket of 2")]
fn a_bucket_that_is_too_short_is_refused() {
    let _ = pack(&[noise([3], 0)], DType::F32, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_lengths_pack_and_unpack(
        lengths in prop::collection::vec(0_usize..200, 1..8),
        padding in 0_usize..70,
    ) {
        check(&lengths, padding);
    }
}
