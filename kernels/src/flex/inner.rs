//! `C = A B^T` by inner products of rows.
//!
//! A general matrix product first copies `B^T`, an element at a time, which costs more than the product itself where
//! `A` has a few dozen rows. Here the rows of both are read as they lie.

use std::mem::MaybeUninit;
use std::slice;

use pulp::{Simd, WithSimd};

use super::few::fetch;
use super::with_simd;

/// Elements of a row that are multiplied at once: those of a block of rows stay in the nearest cache.
const DEPTH: usize = 1024;

/// `c[m, n] = a[m, k] b[n, k]^T`, on this thread alone. The rows of all three are contiguous, one after the other. Gives
/// `c`, which is set now.
pub(crate) fn multiply_transposed<'a>(
    sizes: [usize; 3],
    a: &[f32],
    b: &[f32],
    c: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    let [m, n, k] = sizes;
    assert_eq!([a.len(), b.len(), c.len()], [m * k, n * k, m * n], "matrices of {sizes:?}");
    if k == 0 {
        c.fill(MaybeUninit::new(0.0));
    } else {
        with_simd(Product { sizes, a, b, c });
    }
    // SAFETY: each element of `c` has been set, by the block that it belongs to.
    unsafe { slice::from_raw_parts_mut(c.as_mut_ptr().cast(), c.len()) }
}

struct Product<'a> {
    sizes: [usize; 3],
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as fit into the registers, beside what they are made of.
        if S::REGISTER_COUNT >= 32 {
            self.by_blocks::<S, 4, 5>(simd);
        } else {
            self.by_blocks::<S, 2, 4>(simd);
        }
    }
}

impl Product<'_> {
    /// Goes over `c` in blocks of `M` rows and `N` columns.
    #[inline(always)]
    fn by_blocks<S: Simd, const M: usize, const N: usize>(mut self, simd: S) {
        let [_, n, k] = self.sizes;
        for first in (0..k).step_by(DEPTH) {
            let mut j = 0;
            while j < n {
                j += if n - j >= N {
                    self.columns::<S, M, N>(simd, first, j)
                } else {
                    self.columns::<S, M, 1>(simd, first, j)
                };
            }
        }
    }

    /// `N` columns from `j` on, and the elements of each row from `first` on.
    #[inline(always)]
    fn columns<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        first: usize,
        j: usize,
    ) -> usize {
        let m = self.sizes[0];
        let mut i = 0;
        while i < m {
            i += if m - i >= M {
                self.block::<S, M, N>(simd, first, i, j)
            } else if m - i >= 2 {
                self.block::<S, 2, N>(simd, first, i, j)
            } else {
                self.block::<S, 1, N>(simd, first, i, j)
            };
        }
        N
    }

    #[inline(always)]
    fn block<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        first: usize,
        i: usize,
        j: usize,
    ) -> usize {
        let [_, n, k] = self.sizes;
        let depth = DEPTH.min(k - first);
        let mut sums = [[simd.splat_f32s(0.0); N]; M];
        let (a, b) = (&self.a[i * k + first..], &self.b[j * k + first..]);
        // A row of those that come next, of which each block of rows of `a` fetches another: after the last come the
        // first of the next matrix.
        let next = self.b.as_ptr().wrapping_add((j + N + i / M) * k + first);
        let next = (i / M < N).then_some(next);
        let whole = depth / S::F32_LANES * S::F32_LANES;
        for p in (0..whole).step_by(S::F32_LANES) {
            if let Some(next) = next {
                fetch(next.wrapping_add(p));
            }
            add_products(
                simd,
                &mut sums,
                |row| load::<S>(&a[row * k + p..]),
                |row| load::<S>(&b[row * k + p..]),
            );
        }
        if whole < depth {
            let rest = |row: usize| row * k + whole..row * k + depth;
            add_products(
                simd,
                &mut sums,
                |row| simd.partial_load_f32s(&a[rest(row)]),
                |row| simd.partial_load_f32s(&b[rest(row)]),
            );
        }
        for (row, sums) in sums.iter().enumerate() {
            let c = &mut self.c[(i + row) * n + j..][..N];
            for (c, sum) in c.iter_mut().zip(sums) {
                let sum = simd.reduce_sum_f32s(*sum);
                if first == 0 {
                    c.write(sum);
                } else {
                    // SAFETY: the first elements of the rows have set it.
                    unsafe { *c.assume_init_mut() += sum };
                }
            }
        }
        M
    }
}

/// Adds the products of some elements of each row of `a` with those of each row of `b`.
#[inline(always)]
fn add_products<S: Simd, const M: usize, const N: usize>(
    simd: S,
    sums: &mut [[S::f32s; N]; M],
    a: impl Fn(usize) -> S::f32s,
    b: impl Fn(usize) -> S::f32s,
) {
    let mut columns = [simd.splat_f32s(0.0); N];
    for (j, column) in columns.iter_mut().enumerate() {
        *column = b(j);
    }
    for (i, sums) in sums.iter_mut().enumerate() {
        let row = a(i);
        for (sum, column) in sums.iter_mut().zip(columns) {
            *sum = simd.mul_add_e_f32s(row, column, *sum);
        }
    }
}

#[inline(always)]
fn load<S: Simd>(values: &[f32]) -> S::f32s {
    bytemuck::pod_read_unaligned(bytemuck::cast_slice(&values[..S::F32_LANES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_product_at_odd_sizes() {
        for [m, n, k] in [[1, 1, 1], [4, 5, 16], [7, 9, 17], [5, 6, 0], [3, 11, 1029], [9, 4, 2048]]
        {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
            let b: Vec<f32> = (0..n * k).map(|i| (i as f32).cos()).collect();
            let mut c = vec![MaybeUninit::uninit(); m * n];
            let c = multiply_transposed([m, n, k], &a, &b, &mut c);
            for i in 0..m {
                for j in 0..n {
                    let term = |p| f64::from(a[i * k + p] * b[j * k + p]);
                    let want = (0..k).map(term).sum::<f64>();
                    assert!((f64::from(c[i * n + j]) - want).abs() < 1e-4, "{m} {n} {k}");
                }
            }
        }
    }
}
