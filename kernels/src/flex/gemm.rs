//! `C += A B` for the small matrices inside attention.
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

const ROWS: usize = 8;
const COLUMNS: usize = 32;

/// `c[m, n] += a[m, k] b[k, n]`; the rows of `b` and `c` are contiguous, `b_row` and `c_row` apart.
#[inline(always)]
pub(crate) fn multiply_add(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    let mut i = 0;
    while i < m {
        let rows = ROWS.min(m - i);
        let mut j = 0;
        while j < n {
            if rows == ROWS && n - j >= COLUMNS {
                block::<ROWS, COLUMNS>(i, j, k, a, b, b_row, c, c_row);
                j += COLUMNS;
            } else if rows == ROWS && n - j >= COLUMNS / 2 {
                block::<ROWS, { COLUMNS / 2 }>(i, j, k, a, b, b_row, c, c_row);
                j += COLUMNS / 2;
            } else {
                let columns = (n - j).min(COLUMNS / 2);
                edge(i, j, rows, columns, k, a, b, b_row, c, c_row);
                j += columns;
            }
        }
        i += rows;
    }
}

#[inline(always)]
fn block<const M: usize, const N: usize>(
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
        for (y, x) in c[(i + r) * c_row + j..][..N].iter_mut().zip(row) {
            *y += x;
        }
    }
}

#[inline(always)]
fn edge(
    i: usize,
    j: usize,
    rows: usize,
    columns: usize,
    k: usize,
    a: Strided,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    for r in i..i + rows {
        let mut row = [0.0_f32; COLUMNS / 2];
        for p in 0..k {
            let x = a.values[r * a.row + p * a.column];
            for (y, b) in row.iter_mut().zip(&b[p * b_row + j..][..columns]) {
                *y = x.mul_add(*b, *y);
            }
        }
        for (y, x) in c[r * c_row + j..][..columns].iter_mut().zip(&row) {
            *y += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_product_at_odd_sizes() {
        for [m, n, k] in
            [[1, 1, 1], [8, 32, 16], [9, 33, 17], [7, 15, 3], [64, 47, 24], [3, 100, 0]]
        {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32).cos()).collect();
            for transposed in [false, true] {
                let (row, column) = if transposed { (1, m) } else { (k, 1) };
                let mut c = vec![1.0_f32; m * n];
                let a = Strided { values: &a, row, column };
                multiply_add([m, n, k], a, &b, n, &mut c, n);
                for i in 0..m {
                    for j in 0..n {
                        let want = 1.0
                            + (0..k)
                                .map(|p| {
                                    f64::from(a.values[i * row + p * column])
                                        * f64::from(b[p * n + j])
                                })
                                .sum::<f64>();
                        assert!((f64::from(c[i * n + j]) - want).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
