//! What ranks exchange, and what must come of it, in f64 and i64 and without the code under test.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use burn::tensor::{DType, Device, Int, Tensor};
use burn_titan_parallel::{Buffer, Reduction};
use half::{bf16, f16};

/// The dtypes that are exchanged.
pub const DTYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U8];

/// Sizes, in elements: none, one, a prime, and one more than fill a MiB.
pub fn counts(dtype: DType) -> [usize; 4] {
    [0, 1, 10_007, (1 << 20) / dtype.size() + 1]
}

/// The `i`-th element of a rank's data: all magnitudes and signs, with full significands; integers of the whole
/// range, so that sums wrap.
pub fn element(dtype: DType, rank: usize, i: usize) -> f64 {
    // SplitMix64.
    let mut bits = (i as u64).wrapping_mul(31).wrapping_add(rank as u64 + 1);
    bits = bits.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    let power_of_two = f32::from_bits((127 - 52 + (bits as u32 & 7)) << 23);
    let float = (bits as i64 >> 11) as f32 * power_of_two;
    match dtype {
        DType::F32 => float.into(),
        DType::F16 => f16::from_f32(float).into(),
        DType::BF16 => bf16::from_f32(float).into(),
        DType::I32 => (bits as i32).into(),
        _ => (bits as u8).into(),
    }
}

/// A part of a rank's data.
pub fn data(dtype: DType, rank: usize, range: std::ops::Range<usize>) -> Vec<f64> {
    range.map(|i| element(dtype, rank, i)).collect()
}

/// A tensor of these values, which the dtype can hold.
pub fn buffer(dtype: DType, values: &[f64]) -> Buffer {
    let device = &Device::flex();
    if dtype.is_float() {
        let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        Tensor::<1>::from_data(values.as_slice(), (device, dtype)).into()
    } else {
        let values: Vec<i32> = values.iter().map(|x| *x as i32).collect();
        Tensor::<1, Int>::from_data(values.as_slice(), (device, dtype)).into()
    }
}

/// The data of so many ranks, combined element by element.
pub struct Combined {
    dtype: DType,
    ranks: f64,
    sums: Vec<f64>,
    /// Sums of magnitudes.
    sizes: Vec<f64>,
    largest: Vec<f64>,
}

impl Combined {
    /// Of `size` ranks with `count` elements each. Made once: ranks that are threads, and communicators, share it.
    pub fn of(dtype: DType, count: usize, size: usize) -> Arc<Self> {
        type Key = (DType, usize, usize);
        static MADE: LazyLock<Mutex<HashMap<Key, Arc<Combined>>>> = LazyLock::new(Mutex::default);
        let mut made = MADE.lock().unwrap();
        made.entry((dtype, count, size)).or_insert_with(|| Self::new(dtype, count, size)).clone()
    }

    fn new(dtype: DType, count: usize, size: usize) -> Arc<Self> {
        let none = || vec![0.0; count];
        let (mut sums, mut sizes, mut largest) = (none(), none(), vec![f64::NEG_INFINITY; count]);
        for rank in 0..size {
            for i in 0..count {
                let x = element(dtype, rank, i);
                sums[i] += x;
                sizes[i] += x.abs();
                largest[i] = largest[i].max(x);
            }
        }
        Arc::new(Self { dtype, ranks: size as f64, sums, sizes, largest })
    }

    /// Asserts that these are the elements of the reduction from `start` on.
    pub fn check(&self, reduction: Reduction, got: &[f64], start: usize, case: &str) {
        for (got, i) in got.iter().zip(start..) {
            let (want, bound) = self.reduced(reduction, i);
            assert!((got - want).abs() <= bound, "{case}: {got} at {i}, not {want} +- {bound:e}");
        }
    }

    /// The reduction of the `i`-th elements, and how far off a result may be.
    fn reduced(&self, reduction: Reduction, i: usize) -> (f64, f64) {
        let scale = if reduction == Reduction::Average { self.ranks } else { 1.0 };
        let value = self.sums[i] / scale;
        match (reduction, self.dtype) {
            (Reduction::Max, _) => (self.largest[i], 0.0),
            (_, dtype) if dtype.is_float() => {
                // Every f32 addition rounds once, in whatever order; so does the division; then the dtype.
                let f32s = UNIT_F32 * (self.ranks * self.sizes[i] / scale + value.abs());
                (value, 1.01 * (f32s + unit(dtype) * value.abs()))
            }
            (Reduction::Average, _) => (value.trunc(), 0.0),
            (_, DType::I32) => ((value as i64 as i32).into(), 0.0),
            _ => ((value as i64 as u8).into(), 0.0),
        }
    }
}

/// Half the distance between 1 and the next number.
const UNIT_F32: f64 = 1.0 / (1 << 24) as f64;

fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.0 / (1 << 11) as f64,
        DType::BF16 => 1.0 / (1 << 8) as f64,
        // f32 is not rounded again.
        _ => 0.0,
    }
}
