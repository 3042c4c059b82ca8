//! Splitting row-wise work over threads.

use rayon::prelude::*;

/// Rows a task takes. It does not depend on the number of threads, so neither do sums over tasks.
pub(crate) const ROWS_A_TASK: usize = 64;

/// Calls `f(first_row, chunk)` on chunks of [`ROWS_A_TASK`] rows of `width` values, in parallel.
pub(crate) fn for_rows(values: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    values
        .par_chunks_mut((ROWS_A_TASK * width).max(1))
        .enumerate()
        .for_each(|(task, chunk)| f(task * ROWS_A_TASK, chunk));
}

/// The sum over tasks, in the order of tasks, of vectors of `width` values that `f(first_row, chunk,
/// partial)` fills beside its work on the chunk.
pub(crate) fn sum_over_rows(
    values: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let partials: Vec<Vec<f32>> = values
        .par_chunks_mut((ROWS_A_TASK * width).max(1))
        .enumerate()
        .map(|(task, chunk)| {
            let mut partial = vec![0.0; width];
            f(task * ROWS_A_TASK, chunk, &mut partial);
            partial
        })
        .collect();
    let mut total = vec![0.0; width];
    for partial in &partials {
        for (t, p) in total.iter_mut().zip(partial) {
            *t += p;
        }
    }
    total
}
