use burn::tensor::{DType, Tensor};
use burn_titan_kernels::reduce::{reduce_chunks, reference};

use crate::support::{devices, distance, noise, values};

const SCALE: f32 = 1.0 / 3.0;

/// The unit round-off of a result of this dtype. In f32 there are at most 12 roundings on the way.
fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2.0_f64.powi(-11) + 1e-6,
        DType::BF16 => 2.0_f64.powi(-8) + 1e-6,
        _ => 12.0 * 2.0_f64.powi(-24),
    }
}

#[test]
fn equals_the_f64_sum_at_odd_sizes() {
    for shape in [[1, 1], [3, 17], [11, 1009], [8, 4096], [2, 70_001], [0, 7]] {
        for from in [DType::F32, DType::F16, DType::BF16] {
            let x = noise(shape, 3).cast(from);
            let wide = x.clone().cast(DType::F64);
            let want = values(reference::reduce_chunks(wide, SCALE, DType::F64));
            for device in devices().into_iter().filter(|device| device.supports_dtype(from)) {
                for to in [DType::F32, DType::F16, DType::BF16] {
                    if !device.supports_dtype(to) {
                        continue;
                    }
                    let x = x.clone().cast(DType::F32).to_device(&device).cast(from);
                    let got = reduce_chunks(x, SCALE, to);
                    assert_eq!((got.dtype(), got.dims()), (to, [shape[1]]));
                    let d = distance(&values(got), &want);
                    assert!(d <= bound(to), "{shape:?} {from:?} to {to:?} on {device:?}: {d:e}");
                }
            }
        }
    }
}

/// With numbers that cancel only in row order, the order shows.
#[test]
fn rows_are_added_in_order() {
    let rows = [1e8_f32, 1.0, -1e8, 1.0];
    for device in devices() {
        let x = Tensor::<1>::from_floats(rows.as_slice(), &device).reshape([4, 1]).expand([4, 33]);
        assert_eq!(values(reduce_chunks(x, 1.0, DType::F32)), vec![1.0; 33], "{device:?}");
    }
}

#[test]
fn no_columns_give_no_elements() {
    for device in devices() {
        let x = Tensor::<2>::zeros([5, 0], &device);
        assert_eq!(reduce_chunks(x, 1.0, DType::F32).dims(), [0], "{device:?}");
    }
}
