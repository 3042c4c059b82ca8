//! Tiles of rows between device memory, shared memory and strips.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::super::tile::Head;
use super::strip::*;

/// The sizes of a kernel. Hashed and compared: each is a kernel of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Planes of a cube. Each owns 16 of the rows that the cube works for.
    pub planes: usize,
    /// Rows of the tiles that the cube walks over.
    pub tile: usize,
    pub head_dim: usize,
    /// Whether units stand in for matrix units.
    pub emulated: bool,
}

impl Plan {
    /// Rows that a cube works for.
    pub fn rows(&self) -> usize {
        self.planes * BLOCK
    }

    pub fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Blocks along a head.
    pub fn head_blocks(&self) -> usize {
        self.head_dim / BLOCK
    }

    /// Blocks along a tile.
    pub fn tile_blocks(&self) -> usize {
        self.tile / BLOCK
    }

    /// Distance of rows of a head in shared memory: 16 bytes more than they need, against bank conflicts.
    pub fn head_pitch(&self) -> usize {
        self.head_dim + 8
    }

    /// Distance of rows of a tile of weights, likewise.
    pub fn weight_pitch(&self) -> usize {
        self.tile + 8
    }

    /// Distance of rows of a tile of f32 scores, likewise.
    pub fn score_pitch(&self) -> usize {
        self.tile + 4
    }

    /// Scores that a unit owns: every other column of its row.
    pub fn cells(&self) -> usize {
        self.tile / 2
    }
}

/// A tile of f32 scores, a row of it for each row of the cube.
#[cube]
pub(super) fn score_tile(#[comptime] plan: Plan) -> Shared<[f32]> {
    // Fragments are stored at addresses that are multiples of 32 bytes.
    Shared::new_aligned_slice(comptime!(plan.rows() * plan.score_pitch()), 32usize)
}

/// The place of head `head` of sequence `batch`, in vectors of `N`.
#[cube]
pub(super) fn head_of<F: Float, N: Size>(
    tensor: &Tensor<Vector<F, N>>,
    batch: usize,
    head: usize,
) -> Head {
    Head {
        start: (batch * tensor.stride(0) + head * tensor.stride(1)) / N::value(),
        stride: tensor.stride(2) / N::value(),
        rows: tensor.shape(2),
    }
}

/// Loads `rows` rows from `first_row` on; zeros where there are none.
#[cube]
pub(super) fn load<F: Float, N: Size>(
    tensor: &Tensor<Vector<F, N>>,
    head: &Head,
    first_row: usize,
    target: &mut Rows<F, N>,
    #[comptime] rows: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.head_dim) / N::value().comptime();
    let pitch = comptime!(plan.head_pitch()) / N::value().comptime();
    let mut i = UNIT_POS as usize;
    while i < comptime!(rows * width) {
        let (row, column) = (i / width, i % width);
        let mut values = Vector::<F, N>::new(F::new(0.0));
        if first_row + row < head.rows {
            values = tensor[head.start + (first_row + row) * head.stride + column];
        }
        target.data[row * pitch + column] = values;
        i += comptime!(plan.units());
    }
}

/// Writes the strips of all planes, the first from `first_row` on, times the `factor` of the unit's row, where the rows exist. `scratch` is a
/// tile of scores that no unit of the plane reads any more. Ends with a barrier.
#[cube]
pub(super) fn store<F: Float, N: Size>(
    strip: &Strip,
    factor: f32,
    scratch: &mut Shared<[f32]>,
    tensor: &mut Tensor<Vector<F, N>>,
    head: &Head,
    first_row: usize,
    #[comptime] plan: Plan,
) {
    let first_column = UNIT_POS as usize % 2 * SHARE;
    let pitch = comptime!(plan.score_pitch());
    let start = plane_row() * pitch;
    let own = unit_row() * pitch + first_column;
    let row = first_row + unit_row();
    #[unroll]
    for n in 0..comptime!(plan.head_blocks()) {
        put(strip, n, scratch, start, pitch, plan.emulated);
        sync_strip(plan.emulated);
        if row < head.rows {
            #[unroll]
            for part in 0..SHARE / N::value().comptime() {
                let mut values = Vector::<F, N>::empty();
                #[unroll]
                for i in 0..N::value().comptime() {
                    let value = scratch[own + part * N::value() + i] * factor;
                    values.insert(i, F::cast_from(value));
                }
                let column = (n * BLOCK + first_column) / N::value() + part;
                tensor[head.start + row * head.stride + column] = values;
            }
        }
        sync_strip(plan.emulated);
    }
}

/// Multiplies the rows of a strip by the `factor` of each unit's row. `scratch` as for [`store`],
/// and ends with a barrier too.
#[cube]
pub(super) fn scale_rows(
    strip: &mut Strip,
    factor: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] plan: Plan,
) {
    let first_column = UNIT_POS as usize % 2 * SHARE;
    let pitch = comptime!(plan.score_pitch());
    let start = plane_row() * pitch;
    let own = unit_row() * pitch + first_column;
    #[unroll]
    for n in 0..comptime!(plan.head_blocks()) {
        put(&*strip, n, scratch, start, pitch, plan.emulated);
        sync_strip(plan.emulated);
        #[unroll]
        for j in 0..SHARE {
            scratch[own + j] *= factor;
        }
        sync_strip(plan.emulated);
        take(strip, n, &*scratch, start, pitch, plan.emulated);
        sync_strip(plan.emulated);
    }
}

/// Puts a whole strip of scores into the plane's part of a tile of them. Ends with a barrier.
#[cube]
pub(super) fn put_scores(strip: &Strip, scores: &mut Shared<[f32]>, #[comptime] plan: Plan) {
    let pitch = comptime!(plan.score_pitch());
    let start = plane_row() * pitch;
    #[unroll]
    for n in 0..comptime!(plan.tile_blocks()) {
        put(strip, n, scores, start + n * BLOCK, pitch, plan.emulated);
    }
    sync_strip(plan.emulated);
}
