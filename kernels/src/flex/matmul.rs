//! `C = A B` and `C += A B` for large matrices, into memory that is there already.
//!
//! Burn's own product always returns a fresh tensor. Its multiplication is the same crate's.

use std::mem::MaybeUninit;
use std::slice;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use gemm::Parallelism;

use super::{F32View, Strided};

/// Multiplications below which threads cost more than they save.
const PARALLEL: usize = 192 * 192 * 192;

/// A tensor of two dims as an `f32` matrix. In f32 it is borrowed, whatever its strides; otherwise it is
/// copied once.
pub(crate) struct Matrix {
    values: Values,
    row: usize,
    column: usize,
}

enum Values {
    Borrowed(FlexTensor),
    Copied(F32View),
}

impl Matrix {
    pub(crate) fn new(tensor: &FlexTensor) -> Self {
        let strides = tensor.layout().strides().iter().map(|s| usize::try_from(*s));
        match strides.collect::<Result<Vec<_>, _>>().as_deref() {
            Ok([row, column]) if tensor.dtype() == DType::F32 => {
                Self { values: Values::Borrowed(tensor.clone()), row: *row, column: *column }
            }
            _ => {
                let [_, columns] = tensor.shape().dims();
                Self { values: Values::Copied(F32View::new(tensor)), row: columns, column: 1 }
            }
        }
    }

    pub(crate) fn strided(&self) -> Strided<'_> {
        let values = match &self.values {
            Values::Borrowed(tensor) => &tensor.storage()[tensor.layout().start_offset()..],
            Values::Copied(view) => view,
        };
        Strided { values, row: self.row, column: self.column }
    }
}

impl<'a> Strided<'a> {
    /// The rows from `first` on.
    pub(crate) fn rows_from(self, first: usize) -> Self {
        Self { values: &self.values[first * self.row..], ..self }
    }

    pub(crate) fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    fn assert_holds(&self, rows: usize, columns: usize) {
        let last = (rows - 1) * self.row + (columns - 1) * self.column;
        assert!(last < self.values.len(), "a matrix of {rows} x {columns} is cut short");
    }
}

/// `c[m, n] = a[m, k] b[k, n]`, or `c += a b` if `add`; the rows of `c` are contiguous, `c_row` apart.
pub(crate) fn multiply(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: Strided,
    c: &mut [f32],
    c_row: usize,
    add: bool,
) {
    let parallel = m.saturating_mul(n).saturating_mul(k) >= PARALLEL;
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    let (start, length) = (c.as_mut_ptr(), c.len());
    // SAFETY: `c` is so long, and its values are set.
    unsafe { multiply_raw([m, n, k], a, b, start, length, c_row, add, parallelism) }
}

/// `c[m, n] = a[m, k] b[k, n]`, on this thread alone, for tasks that run beside others. Gives `c`, which is set now; its
/// rows are contiguous, one after the other.
pub(crate) fn multiply_into<'a>(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: Strided,
    c: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    assert_eq!(c.len(), m * n, "the result has all of the memory");
    let (start, length) = (c.as_mut_ptr().cast(), c.len());
    // SAFETY: the product is not added to `c`, and sets all of it, since its rows follow each other. Values that are
    // set are values.
    unsafe {
        multiply_raw([m, n, k], a, b, start, length, n, false, Parallelism::None);
        slice::from_raw_parts_mut(start, length)
    }
}

/// # Safety
/// `c` points to memory for `length` values, which are set if `add`.
unsafe fn multiply_raw(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: Strided,
    c: *mut f32,
    length: usize,
    c_row: usize,
    add: bool,
    parallelism: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k > 0 {
        a.assert_holds(m, k);
        b.assert_holds(k, n);
    }
    assert!(n <= c_row && (m - 1) * c_row + n <= length, "the result does not fit");
    // SAFETY: every element of the three matrices is inside its memory, as asserted above, and the
    // elements of `c` are disjoint because its rows are.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_row as isize,
            add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_product_into_part_of_a_matrix() {
        for [m, n, k] in [[1, 1, 1], [5, 9, 3], [33, 70, 40], [4, 3, 0]] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32).cos()).collect();
            for add in [false, true] {
                let a = Strided { values: &a, row: k, column: 1 };
                let b = Strided { values: &b, row: k, column: 1 }.transposed();
                let mut c = vec![1.0_f32; m * (n + 2)];
                multiply([m, n, k], a, b, &mut c, n + 2, add);
                for (i, row) in c.chunks(n + 2).enumerate() {
                    for (j, got) in row[..n].iter().enumerate() {
                        let products = (0..k).map(|p| a.values[i * k + p] * b.values[j * k + p]);
                        let start = if add { 1.0 } else { 0.0 };
                        let want = start + products.map(f64::from).sum::<f64>();
                        assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
                    }
                    assert_eq!(row[n..], [1.0; 2]);
                }
            }
            let a = Strided { values: &a, row: k, column: 1 };
            let b = Strided { values: &b, row: k, column: 1 }.transposed();
            let mut want = vec![1.0_f32; m * n];
            multiply([m, n, k], a, b, &mut want, n, false);
            let mut c = vec![MaybeUninit::uninit(); m * n];
            assert_eq!(multiply_into([m, n, k], a, b, &mut c), want);
        }
    }
}
