//! `C = A B` and `C += A B` for the small matrices inside attention.
//!
//! A general matrix product packs its operands, which costs more than the product itself when the
//! inner dimension is a head's 16 to 128. This one keeps a block of C in registers and reads A and B
//! where they are. Call it inside a [`super::simd_fn`].

/// A matrix inside a slice: element `(i, j)` is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// Rows of B and C are padded to a multiple of this many columns.
pub(crate) const COLUMN_STEP: usize = 16;

/// `c[m, n] = a[m, k] b[k, n]`, or `+=` where `ADD`. The rows of `b` and `c` are contiguous, `b_row` and
/// `c_row` apart; `n` is a multiple of [`COLUMN_STEP`].
#[inline(always)]
pub(crate) fn multiply_tile<const ADD: bool>(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    debug_assert!(n.is_multiple_of(COLUMN_STEP));
    let mut i = 0;
    while i < m {
        let rows = m - i;
        i += if rows >= 8 {
            row_block::<8, ADD>(i, n, k, a, b, b_row, c, c_row)
        } else if rows >= 4 {
            row_block::<4, ADD>(i, n, k, a, b, b_row, c, c_row)
        } else {
            row_block::<1, ADD>(i, n, k, a, b, b_row, c, c_row)
        };
    }
}

#[inline(always)]
fn row_block<const M: usize, const ADD: bool>(
    i: usize,
    n: usize,
    k: usize,
    a: Strided,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) -> usize {
    let mut j = 0;
    while j + 2 * COLUMN_STEP <= n {
        block::<M, { 2 * COLUMN_STEP }, ADD>(i, j, k, a, b, b_row, c, c_row);
        j += 2 * COLUMN_STEP;
    }
    if j < n {
        block::<M, COLUMN_STEP, ADD>(i, j, k, a, b, b_row, c, c_row);
    }
    M
}

#[inline(always)]
fn block<const M: usize, const N: usize, const ADD: bool>(
    i: usize,
    j: usize,
    k: usize,
    a: Strided,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    let mut block = [[0.0_f32; N]; M];
    for p in 0..k {
        let b: &[f32; N] = b[p * b_row + j..][..N].try_into().expect("N values");
        for (r, row) in block.iter_mut().enumerate() {
            let x = a.values[(i + r) * a.row + p * a.column];
            for (y, b) in row.iter_mut().zip(b) {
                *y = x.mul_add(*b, *y);
            }
        }
    }
    for (r, row) in block.iter().enumerate() {
        let c = &mut c[(i + r) * c_row + j..][..N];
        if ADD {
            for (y, x) in c.iter_mut().zip(row) {
                *y += x;
            }
        } else {
            c.copy_from_slice(row);
        }
    }
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
            for transposed in [false, true] {
                let (row, column) = if transposed { (1, m) } else { (k, 1) };
                let a = Strided { values: &a, row, column };
                let (mut set, mut added) = (vec![1.0_f32; m * n], vec![1.0_f32; m * n]);
                multiply_tile::<false>([m, n, k], a, &b, n, &mut set, n);
                multiply_tile::<true>([m, n, k], a, &b, n, &mut added, n);
                for i in 0..m {
                    for j in 0..n {
                        let term = |p| f64::from(a.values[i * row + p * column] * b[p * n + j]);
                        let want = (0..k).map(term).sum::<f64>();
                        assert!((f64::from(set[i * n + j]) - want).abs() < 1e-5);
                        assert!((f64::from(added[i * n + j]) - want - 1.0).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
