//! `C = A B` where a matrix is in use for little longer than memory takes to read it, or to take it.
//!
//! A general matrix product waits for memory where `A` has few rows, or `B`, since it fetches nothing ahead. This one
//! computes blocks of `C` from `B` as it lies, and meanwhile asks for what the next blocks read and write. Only `A` is put
//! into another order, in which a block reads it from one end to the other.

use std::array;
use std::mem::MaybeUninit;
use std::slice;

use super::{COLUMN_STEP, Strided, simd_fn};

/// Columns of a block.
const COLUMNS: usize = 2 * COLUMN_STEP;

/// Rows of a block, at most.
const ROWS: usize = 8;

/// `c[m, n] = a[m, k] b[k, n]`, on this thread alone. The rows of `b` and `c` are contiguous, one after the other, and so
/// are the rows of `a` or its columns; `n` is a multiple of [`COLUMN_STEP`]. Gives `c`, which is set now.
///
/// Where the next product reads what follows `b` in memory, it finds the beginning of it in the cache.
pub(crate) fn multiply_few<'c>(
    sizes: [usize; 3],
    a: Strided,
    b: &[f32],
    c: &'c mut [MaybeUninit<f32>],
) -> &'c mut [f32] {
    let [m, n, k] = sizes;
    assert!(n.is_multiple_of(COLUMN_STEP), "columns are whole vectors");
    assert_eq!([b.len(), c.len()], [n * k, m * n], "matrices of {sizes:?}");
    if k == 0 {
        c.fill(MaybeUninit::new(0.0));
    } else {
        by_columns(sizes, &by_blocks(m, k, a), b, c);
    }
    // SAFETY: each element of `c` has been set, by the block that it belongs to.
    unsafe { slice::from_raw_parts_mut(c.as_mut_ptr().cast(), c.len()) }
}

/// Blocks of as equal heights as can be, with the row that each begins at.
fn heights(m: usize) -> impl Iterator<Item = (usize, usize)> {
    let blocks = m.div_ceil(ROWS);
    let begin = move |block: usize| (block * m).div_ceil(blocks);
    (0..blocks).map(move |block| (begin(block), begin(block + 1) - begin(block)))
}

/// `a`, in which the columns of a block follow each other.
fn by_blocks(m: usize, k: usize, a: Strided) -> Vec<f32> {
    let mut values = vec![0.0; m * k];
    for (first, height) in heights(m) {
        let a = Strided { values: &a.values[first * a.row..], ..a };
        let block = &mut values[first * k..][..height * k];
        match height {
            ROWS => transpose(a, block.as_chunks_mut::<ROWS>().0),
            _ => {
                for (p, column) in block.chunks_exact_mut(height).enumerate() {
                    for (r, value) in column.iter_mut().enumerate() {
                        *value = a.values[r * a.row + p * a.column];
                    }
                }
            }
        }
    }
    values
}

/// The first rows of `a`, column by column.
fn transpose(a: Strided, columns: &mut [[f32; ROWS]]) {
    if a.row == 1 {
        for (p, column) in columns.iter_mut().enumerate() {
            column.copy_from_slice(&a.values[p * a.column..][..ROWS]);
        }
    } else {
        assert_eq!(a.column, 1, "rows or columns are contiguous");
        let rows: [&[f32]; ROWS] = array::from_fn(|r| &a.values[r * a.row..][..columns.len()]);
        for (p, column) in columns.iter_mut().enumerate() {
            *column = rows.map(|row| row[p]);
        }
    }
}

simd_fn! {
    fn by_columns(
        sizes: [usize; 3],
        a: &'a [f32],
        b: &'a [f32],
        c: &'a mut [MaybeUninit<f32>],
    ) -> () {
        let [m, n, k] = sizes;
        let blocks = m.div_ceil(ROWS);
        let mut j = 0;
        while j < n {
            let wide = j + COLUMNS <= n;
            for (turn, (first, height)) in heights(m).enumerate() {
                let a = &a[first * k..][..height * k];
                let c = &mut c[first * n..];
                let ahead = Ahead::new([n, k], j, b, [turn, blocks]);
                match wide {
                    true => of_height::<COLUMNS>(height, n, j, a, b, c, ahead),
                    false => of_height::<COLUMN_STEP>(height, n, j, a, b, c, ahead),
                }
            }
            j += if wide { COLUMNS } else { COLUMN_STEP };
        }
    }
}

/// The columns of `b` that come next, line by line: each block of rows fetches its share of them.
struct Ahead {
    /// Where they begin.
    start: *const f32,
    /// From one row of them to the next.
    row: usize,
    /// The line that comes next, and how many a step fetches, both in [`Ahead::LINE`]s.
    line: usize,
    step: usize,
}

impl Ahead {
    const LINE: usize = 256;
    const LINES_OF_A_ROW: usize = COLUMNS / COLUMN_STEP;

    /// For columns from `j` on of `b[k, n]`, which a block takes `turn` of `turns` at. After the last come the first of
    /// the next matrix.
    #[inline(always)]
    fn new([n, k]: [usize; 2], j: usize, b: &[f32], [turn, turns]: [usize; 2]) -> Self {
        let next = if j + COLUMNS < n { j + COLUMNS } else { n * k };
        let lines = Self::LINES_OF_A_ROW * Self::LINE;
        Self {
            start: b.as_ptr().wrapping_add(next),
            row: n,
            line: lines * k * turn / turns,
            step: lines / turns,
        }
    }

    #[inline(always)]
    fn fetch(&mut self) {
        self.fetch_line(self.line / Self::LINE);
        if self.step > Self::LINE {
            self.fetch_line(self.line / Self::LINE + 1);
        }
        self.line += self.step;
    }

    #[inline(always)]
    fn fetch_line(&self, line: usize) {
        let (row, line) = (line / Self::LINES_OF_A_ROW, line % Self::LINES_OF_A_ROW);
        fetch(self.start.wrapping_add(row * self.row + line * COLUMN_STEP));
    }
}

#[inline(always)]
fn of_height<const N: usize>(
    height: usize,
    n: usize,
    j: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [MaybeUninit<f32>],
    ahead: Ahead,
) {
    match height {
        8 => block::<8, N>(n, j, a, b, c, ahead),
        7 => block::<7, N>(n, j, a, b, c, ahead),
        6 => block::<6, N>(n, j, a, b, c, ahead),
        5 => block::<5, N>(n, j, a, b, c, ahead),
        4 => block::<4, N>(n, j, a, b, c, ahead),
        3 => block::<3, N>(n, j, a, b, c, ahead),
        2 => block::<2, N>(n, j, a, b, c, ahead),
        _ => block::<1, N>(n, j, a, b, c, ahead),
    }
}

/// Columns from `j` on of the first rows of `c`, whose rows have `n`.
#[inline(always)]
fn block<const M: usize, const N: usize>(
    n: usize,
    j: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [MaybeUninit<f32>],
    mut ahead: Ahead,
) {
    for r in M..2 * M {
        for line in 0..N / COLUMN_STEP {
            fetch_to_write(c.as_ptr().wrapping_add(r * n + j + line * COLUMN_STEP));
        }
    }
    let mut sums = [[0.0_f32; N]; M];
    for (a, b) in a.as_chunks::<M>().0.iter().zip(b.chunks_exact(n)) {
        ahead.fetch();
        let b: &[f32; N] = b[j..][..N].try_into().expect("N values");
        for (r, sums) in sums.iter_mut().enumerate() {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a[r].mul_add(*b, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        c[r * n + j..][..N].write_copy_of_slice(sums);
    }
}

/// Asks for a cache line, and does not wait for it. It may be one that there is not.
#[inline(always)]
pub(super) fn fetch(value: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which changes no value and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(value.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// As [`fetch`], for a line that is to be written.
#[inline(always)]
fn fetch_to_write(value: *const MaybeUninit<f32>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: as in `fetch`.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(value.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_product_at_odd_sizes() {
        for [m, n, k] in [
            [1, 16, 1],
            [8, 32, 16],
            [9, 48, 17],
            [7, 16, 3],
            [64, 80, 24],
            [3, 96, 0],
            [13, 64, 5],
        ] {
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
