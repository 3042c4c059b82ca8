//! How logits `[tokens, vocab]` are cut, so that a chunk stays within a budget.
//!
//! As long as [`WHOLE_ROWS`] rows fit, a chunk holds whole rows: then the loss and the gradients come
//! from the same logits. Otherwise chunks are about square, because a chunk of `rows x columns`
//! reads `rows` hidden states and `columns` of the weight for `rows x columns x dim` multiplications.

use std::ops::Range;

/// Tokens of a chunk of whole rows.
const WHOLE_ROWS: usize = 512;

/// Columns come in multiples of this, so that every chunk of a weight begins at a cache line and at an
/// offset that GPUs can bind.
const COLUMN_STEP: usize = 256;

/// A cut of `[tokens, vocab]` into chunks of equal size but for the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    tokens: usize,
    vocab: usize,
    rows: usize,
    columns: usize,
}

impl Chunks {
    /// Chunks of at most `budget` elements, or of one row by [`COLUMN_STEP`] columns if that is more.
    pub(super) fn new(tokens: usize, vocab: usize, budget: usize) -> Self {
        let whole = even(tokens, WHOLE_ROWS);
        if whole.saturating_mul(vocab) <= budget {
            return Self { tokens, vocab, rows: whole, columns: vocab.max(1) };
        }
        let rows = even(tokens, budget.isqrt().min(budget / COLUMN_STEP).max(1));
        let most = (budget / rows / COLUMN_STEP).max(1) * COLUMN_STEP;
        let columns = even(vocab, most).next_multiple_of(COLUMN_STEP);
        Self { tokens, vocab, rows, columns }
    }

    /// Whether a chunk holds whole rows.
    pub(super) fn whole_rows(&self) -> bool {
        self.columns >= self.vocab
    }

    /// Elements of the largest chunk.
    pub(super) fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// The tokens of each row of chunks.
    pub(super) fn rows(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        ranges(self.tokens, self.rows)
    }

    /// The vocabulary of each column of chunks.
    pub(super) fn columns(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        ranges(self.vocab, self.columns)
    }
}

/// The size of equal parts of `length`, each at most `most` (both at least 1).
fn even(length: usize, most: usize) -> usize {
    let parts = length.div_ceil(most.max(1)).max(1);
    length.div_ceil(parts).max(1)
}

fn ranges(length: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(step).map(move |start| start..length.min(start + step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_one_chunk_within_the_budget() {
        for [tokens, vocab, budget] in [
            [2048, 2048, 1 << 24],
            [700, 128_256, 1 << 24],
            [8192, 128_256, 1 << 24],
            [100, 1000, 4096],
            [1, 1, 1 << 24],
            [0, 7, 64],
            [7, 0, 64],
        ] {
            let chunks = Chunks::new(tokens, vocab, budget);
            assert!(chunks.elements() <= budget, "{chunks:?}");
            let mut seen = 0;
            let mut column = 0;
            for columns in chunks.columns() {
                assert_eq!(columns.start, column);
                column = columns.end;
                let mut row = 0;
                for rows in chunks.rows() {
                    assert_eq!(rows.start, row);
                    row = rows.end;
                    seen += rows.len() * columns.len();
                }
            }
            assert_eq!(seen, tokens * vocab, "{chunks:?}");
        }
    }

    #[test]
    fn small_vocabularies_come_in_whole_rows() {
        assert!(Chunks::new(100_000, 32_000, 1 << 24).whole_rows());
        assert!(!Chunks::new(100_000, 128_256, 1 << 24).whole_rows());
    }
}
