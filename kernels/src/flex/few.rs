//! `C = A B` where a matrix is in use for little longer than memory takes to read it, or to take it.
//!
//! A general matrix product waits for memory where `A` has few rows, or `B`, since it fetches nothing ahead. This one
//! computes blocks of `C` from the operands as they lie, and meanwhile asks for what the next blocks read and write.

use std::mem::MaybeUninit;
use std::slice;

use super::{COLUMN_STEP, Strided, simd_fn};

/// Columns of a block.
const COLUMNS: usize = 2 * COLUMN_STEP;

/// `c[m, n] = a[m, k] b[k, n]`, on this thread alone. The rows of `b` and `c` are contiguous, one after the other; `n` is a
/// multiple of [`COLUMN_STEP`]. Gives `c`, which is set now.
pub(crate) fn multiply_few<'c>(
    sizes: [usize; 3],
    a: Strided,
    b: &[f32],
    c: &'c mut [MaybeUninit<f32>],
) -> &'c mut [f32] {
    let [m, n, k] = sizes;
    assert!(n.is_multiple_of(COLUMN_STEP), "columns are whole vectors");
    assert_eq!([b.len(), c.len()], [n * k, m * n], "matrices of {sizes:?}");
    by_columns(sizes, a, b, c);
    // SAFETY: each element of `c` has been set, by the block that it belongs to.
    unsafe { slice::from_raw_parts_mut(c.as_mut_ptr().cast(), c.len()) }
}

simd_fn! {
    fn by_columns(
        sizes: [usize; 3],
        a: Strided<'a>,
        b: &'a [f32],
        c: &'a mut [MaybeUninit<f32>],
    ) -> () {
        let n = sizes[1];
        let mut j = 0;
        while j + COLUMNS <= n {
            rows::<COLUMNS>(sizes, j, a, b, c);
            j += COLUMNS;
        }
        if j < n {
            rows::<COLUMN_STEP>(sizes, j, a, b, c);
        }
    }
}

/// `N` columns from `j` on.
#[inline(always)]
fn rows<const N: usize>(
    sizes: [usize; 3],
    j: usize,
    a: Strided,
    b: &[f32],
    c: &mut [MaybeUninit<f32>],
) {
    let m = sizes[0];
    let mut i = 0;
    while i < m {
        i += match m - i {
            8.. => block::<8, N>(sizes, i, j, a, b, c),
            4.. => block::<4, N>(sizes, i, j, a, b, c),
            2.. => block::<2, N>(sizes, i, j, a, b, c),
            _ => block::<1, N>(sizes, i, j, a, b, c),
        };
    }
}

#[inline(always)]
fn block<const M: usize, const N: usize>(
    [_, n, k]: [usize; 3],
    i: usize,
    j: usize,
    a: Strided,
    b: &[f32],
    c: &mut [MaybeUninit<f32>],
) -> usize {
    let mut block = [[0.0_f32; N]; M];
    // The first blocks of rows fetch a line each of every row of the next columns.
    let ahead = j + N + i / M * COLUMN_STEP;
    let ahead = if i / M < N / COLUMN_STEP && ahead < n { Some(ahead) } else { None };
    for p in 0..k {
        if let Some(ahead) = ahead {
            fetch(&b[p * n + ahead]);
        }
        let lines = N / COLUMN_STEP;
        if p < M * lines {
            let next = (i + M + p / lines) * n + j + p % lines * COLUMN_STEP;
            if let Some(value) = c.get(next) {
                fetch_to_write(value);
            }
        }
        let b: &[f32; N] = b[p * n + j..][..N].try_into().expect("N values");
        for (r, row) in block.iter_mut().enumerate() {
            let x = a.values[(i + r) * a.row + p * a.column];
            for (y, b) in row.iter_mut().zip(b) {
                *y = x.mul_add(*b, *y);
            }
        }
    }
    for (r, row) in block.iter().enumerate() {
        c[(i + r) * n + j..][..N].write_copy_of_slice(row);
    }
    M
}

/// Asks for a cache line, and does not wait for it.
#[inline(always)]
pub(super) fn fetch(value: &f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which changes no value.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// As [`fetch`], for a line that is to be written.
#[inline(always)]
fn fetch_to_write(value: &MaybeUninit<f32>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: as in `fetch`.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(value.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_product_at_odd_sizes() {
        for [m, n, k] in
            [[1, 16, 1], [8, 32, 16], [9, 48, 17], [7, 16, 3], [64, 80, 24], [3, 96, 0]]
        {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32).cos()).collect();
            for [row, column] in [[k, 1], [1, m]] {
                let a = Strided { values: &a, row, column };
                let mut c = vec![MaybeUninit::uninit(); m * n];
                let c = multiply_few([m, n, k], a, &b, &mut c);
                for i in 0..m {
                    for j in 0..n {
                        let term = |p| f64::from(a.values[i * row + p * column] * b[p * n + j]);
                        let want = (0..k).map(term).sum::<f64>();
                        assert!((f64::from(c[i * n + j]) - want).abs() < 1e-5, "{m} {n} {k}");
                    }
                }
            }
        }
    }
}
