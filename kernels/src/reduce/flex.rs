//! The sum of chunks on the CPU: a task a run of columns, whose sums stay in the cache.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::flex::{
    NullaryFnOnce, Number, Values, convert, values_mut, with_number, with_simd, zeros,
};

/// Columns of a task.
const RUN: usize = 4096;

pub(super) fn reduce_chunks(chunks: &FlexTensor, scale: f32, dtype: DType) -> FlexTensor {
    let [_, length] = chunks.shape().dims();
    let mut output = zeros([length].into(), dtype);
    with_number!(chunks.dtype(), A => with_number!(dtype, B => {
        let values = Values::<A>::new(chunks);
        let runs = values_mut::<B>(&mut output).par_chunks_mut(RUN);
        runs.enumerate().for_each(|(run, output)| {
            let mut sums = [0.0; RUN];
            let sums = &mut sums[..output.len()];
            with_simd(SumRows { values: &values, length, first: run * RUN, scale, sums });
            convert(sums, output);
        });
    }));
    output
}

/// Sums the columns from `first` on over all rows.
struct SumRows<'a, A> {
    values: &'a [A],
    length: usize,
    first: usize,
    scale: f32,
    sums: &'a mut [f32],
}

impl<A: Number> NullaryFnOnce for SumRows<'_, A> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for row in self.values.chunks_exact(self.length) {
            for (sum, x) in self.sums.iter_mut().zip(&row[self.first..]) {
                *sum += x.widen();
            }
        }
        for sum in self.sums {
            *sum *= self.scale;
        }
    }
}
