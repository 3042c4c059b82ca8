//! The tiles that the attention kernels work on: loading them, and products of them.
//!
//! Unit `8 y + x` owns rows `4 y + i` and columns `x + 8 j` of a tile of scores, and columns `2 x + j` of
//! each chunk of a head; `i` and `j` count its cells.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

/// Queries, and keys, of a tile.
pub(super) const TILE: usize = 32;
/// Units along each side of a tile.
pub(super) const SIDE: usize = 8;
/// Units of a cube.
pub(super) const UNITS: usize = SIDE * SIDE;
/// Rows, and columns, of scores that a unit owns.
pub(super) const CELLS: usize = TILE / SIDE;
/// Columns of a head that are in shared memory at once.
pub(super) const CHUNK: usize = 16;
/// Columns of a chunk that a unit owns.
pub(super) const CHUNK_CELLS: usize = CHUNK / SIDE;
/// Distance of the rows of a chunk, one more than they need against bank conflicts.
pub(super) const CHUNK_PITCH: usize = CHUNK + 1;
/// Distance of the rows of a tile of scores.
pub(super) const SCORE_PITCH: usize = TILE + 1;
/// Stands for minus infinity, which WebGPU does not promise.
pub(super) const NOTHING: f32 = -1e30;

/// Where one head of a tensor is.
#[derive(CubeType)]
pub(super) struct Head {
    /// Of its first row.
    pub(super) start: usize,
    /// Distance of its rows.
    pub(super) stride: usize,
    /// Its rows.
    pub(super) rows: usize,
}

/// The place of head `head` of sequence `batch` in a `[batch, heads, seq, head_dim]` tensor.
#[cube]
pub(super) fn head_of<F: Float>(tensor: &Tensor<F>, batch: usize, head: usize) -> Head {
    Head {
        start: batch * tensor.stride(0) + head * tensor.stride(1),
        stride: tensor.stride(2),
        rows: tensor.shape(2),
    }
}

/// Some keys, or queries, that follow each other.
#[derive(CubeType)]
pub(super) struct Interval {
    pub(super) first: usize,
    /// The one after the last.
    pub(super) end: usize,
}

/// The keys that some query of a tile of `rows` sees: all between the first and the last.
#[cube]
pub(super) fn keys_seen(
    visible: &Tensor<u32>,
    batch: usize,
    first_query: usize,
    #[comptime] rows: usize,
) -> Interval {
    let queries = visible.shape(1);
    let mut tile_first = usize::cast_from(u32::MAX);
    let mut tile_end = 0_usize;
    for row in first_query..min(first_query + rows, queries) {
        let at = 2 * (batch * queries + row);
        let first = visible[at] as usize;
        let end = visible[at + 1] as usize;
        if first < end {
            tile_first = min(tile_first, first);
            tile_end = max(tile_end, end);
        }
    }
    Interval { first: tile_first, end: tile_end }
}

/// The queries that see some key of a tile of `columns`: all between the first and the last. Each of the
/// cube's `units` looks at its share; `ends` has two places for each.
#[cube]
pub(super) fn queries_seeing(
    visible: &Tensor<u32>,
    batch: usize,
    first_key: usize,
    ends: &mut Shared<[u32]>,
    #[comptime] columns: usize,
    #[comptime] units: usize,
) -> Interval {
    let queries = visible.shape(1);
    let unit = UNIT_POS as usize;
    let mut tile_first = queries;
    let mut tile_end = 0_usize;
    let mut row = unit;
    while row < queries {
        let at = 2 * (batch * queries + row);
        let first = visible[at] as usize;
        let end = visible[at + 1] as usize;
        if first < end && first < first_key + columns && end > first_key {
            tile_first = min(tile_first, row);
            tile_end = row + 1;
        }
        row += units;
    }
    ends[2 * unit] = tile_first as u32;
    ends[2 * unit + 1] = tile_end as u32;
    sync_cube();
    for i in 0..units {
        tile_first = min(tile_first, ends[2 * i] as usize);
        tile_end = max(tile_end, ends[2 * i + 1] as usize);
    }
    Interval { first: tile_first, end: tile_end }
}

/// Loads one chunk of columns of a tile of rows; zeros where there are none.
#[cube]
pub(super) fn load<F: Float>(
    tensor: &Tensor<F>,
    head: &Head,
    first_row: usize,
    first_column: usize,
    chunk: &mut Shared<[f32]>,
    #[comptime] head_dim: usize,
) {
    #[unroll]
    for step in 0..TILE * CHUNK / UNITS {
        let i = UNIT_POS as usize + step * UNITS;
        let (row, column) = (first_row + i / CHUNK, first_column + i % CHUNK);
        let mut x = 0.0_f32;
        if row < head.rows && column < head_dim {
            x = f32::cast_from(tensor[head.start + row * head.stride + column]);
        }
        chunk[i / CHUNK * CHUNK_PITCH + i % CHUNK] = x;
    }
}

/// `cells = A B^T` of two tiles of rows of `head_dim`: the unit's part. Ends with a barrier.
#[cube]
pub(super) fn row_products<F: Float>(
    a: &Tensor<F>,
    a_head: &Head,
    a_row: usize,
    b: &Tensor<F>,
    b_head: &Head,
    b_row: usize,
    a_chunk: &mut Shared<[f32]>,
    b_chunk: &mut Shared<[f32]>,
    cells: &mut Array<f32>,
    #[comptime] head_dim: usize,
) {
    let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for cell in 0..CELLS * CELLS {
        cells[cell] = 0.0_f32;
    }
    for chunk in 0..head_dim.div_ceil(CHUNK) {
        load::<F>(a, a_head, a_row, chunk * CHUNK, a_chunk, head_dim);
        load::<F>(b, b_head, b_row, chunk * CHUNK, b_chunk, head_dim);
        sync_cube();
        for d in 0..CHUNK {
            let mut left = Array::<f32>::new(CELLS);
            let mut right = Array::<f32>::new(CELLS);
            #[unroll]
            for i in 0..CELLS {
                left[i] = a_chunk[(y * CELLS + i) * CHUNK_PITCH + d];
                right[i] = b_chunk[(x + SIDE * i) * CHUNK_PITCH + d];
            }
            #[unroll]
            for i in 0..CELLS {
                #[unroll]
                for j in 0..CELLS {
                    cells[i * CELLS + j] += left[i] * right[j];
                }
            }
        }
        sync_cube();
    }
}

/// `cells += P B` for one chunk of columns of a tile of rows, where `P` is a tile of scores, or its
/// transpose. `offset` is where the chunk's cells begin.
#[cube]
pub(super) fn score_products(
    scores: &Shared<[f32]>,
    chunk: &Shared<[f32]>,
    cells: &mut Array<f32>,
    #[comptime] offset: usize,
    #[comptime] transposed: bool,
) {
    let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    for k in 0..TILE {
        let mut right = Array::<f32>::new(CHUNK_CELLS);
        #[unroll]
        for j in 0..CHUNK_CELLS {
            right[j] = chunk[k * CHUNK_PITCH + x * CHUNK_CELLS + j];
        }
        #[unroll]
        for i in 0..CELLS {
            let row = y * CELLS + i;
            let score = if transposed {
                scores[k * SCORE_PITCH + row]
            } else {
                scores[row * SCORE_PITCH + k]
            };
            #[unroll]
            for j in 0..CHUNK_CELLS {
                cells[offset + i * CHUNK_CELLS + j] += score * right[j];
            }
        }
    }
}

/// `softcap tanh(score / softcap)`.
#[cube]
pub(super) fn capped_score(score: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    if capped { cap * (score / cap).tanh() } else { score }
}

/// Writes a chunked block of rows, times `factor`, where the rows and columns exist.
#[cube]
pub(super) fn store<F: Float>(
    cells: &Array<f32>,
    factor: &Array<f32>,
    tensor: &mut Tensor<F>,
    head: &Head,
    first_row: usize,
    #[comptime] head_dim: usize,
) {
    let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for chunk in 0..head_dim.div_ceil(CHUNK) {
        #[unroll]
        for i in 0..CELLS {
            #[unroll]
            for j in 0..CHUNK_CELLS {
                let row = first_row + y * CELLS + i;
                let column = chunk * CHUNK + x * CHUNK_CELLS + j;
                if row < head.rows && column < head_dim {
                    let value = cells[(chunk * CELLS + i) * CHUNK_CELLS + j] * factor[i];
                    tensor[head.start + row * head.stride + column] = F::cast_from(value);
                }
            }
        }
    }
}
