//! A strip of 16 rows in the registers of a plane, and its one product: `strip += A B`.
//!
//! `A` is 16 rows, `B` what they meet, both f16 or bf16 in shared memory; the strip is f32, blocks of
//! 16 x 16. With matrix units each block is a cooperative-matrix fragment (`cmma`). Emulated, unit
//! `2 r + h` of the plane keeps row `r`, columns `8 h..8 h + 8` of each block, and a barrier of the plane is one
//! of the cube: then any device can run, and test, all that is built on it.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use burn_cubecl::cubecl::prelude::*;

/// Rows, columns and depth of a block.
pub(super) const BLOCK: usize = 16;
/// Units of a plane.
pub(super) const PLANE: usize = 32;
/// Columns of a block that an emulating unit keeps, and that a unit writes out.
pub(super) const SHARE: usize = BLOCK * BLOCK / PLANE;

/// Blocks side by side; one of the two is empty.
#[derive(CubeType)]
pub(super) struct Strip {
    fragments: Sequence<cmma::Matrix<f32>>,
    cells: Sequence<Array<f32>>,
}

/// A strip of zeros, `blocks` wide.
#[cube]
pub(super) fn zeros(#[comptime] blocks: usize, #[comptime] emulated: bool) -> Strip {
    let mut fragments = Sequence::<cmma::Matrix<f32>>::new();
    let mut cells = Sequence::<Array<f32>>::new();
    #[unroll]
    for _ in 0..blocks {
        if emulated {
            let mut block = Array::<f32>::new(SHARE);
            #[unroll]
            for i in 0..SHARE {
                block[i] = 0.0_f32;
            }
            cells.push(block);
        } else {
            fragments.push(cmma::Matrix::<f32>::from_value(
                MatrixIdent::Accumulator,
                BLOCK,
                BLOCK,
                BLOCK,
                MatrixLayout::Undefined,
                0.0_f32,
            ));
        }
    }
    Strip { fragments, cells }
}

/// Rows of elements in shared memory, in vectors of `N`. Counts are of elements.
#[derive(CubeType)]
pub(super) struct Rows<F: Float, N: Size> {
    pub(super) data: Shared<[Vector<F, N>]>,
    /// Distance of the rows.
    #[cube(comptime)]
    pub(super) pitch: usize,
}

#[cube]
impl<F: Float, N: Size> Rows<F, N> {
    pub(super) fn new(#[comptime] rows: usize, #[comptime] pitch: usize) -> Rows<F, N> {
        let length = comptime!(rows * pitch) / N::value().comptime();
        // Fragments are loaded from addresses that are multiples of 32 bytes.
        Rows::<F, N> { data: Shared::new_aligned_slice(length, 32usize), pitch }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        let i = row * self.pitch + column;
        f32::cast_from(self.data[i / N::value()].extract_dynamic(i % N::value()))
    }
}

/// `strip += A B`, where `A` is the plane's 16 rows of `a`, `16 depth` columns, and `B` the first `16 depth`
/// rows of `b`, or of its transpose. Every unit of the plane must come here.
#[cube]
pub(super) fn multiply<F: Float, N: Size, M: Size>(
    strip: &mut Strip,
    a: &Rows<F, N>,
    b: &Rows<F, M>,
    #[comptime] blocks: usize,
    #[comptime] depth: usize,
    #[comptime] transposed: bool,
    #[comptime] emulated: bool,
) {
    let a_row = plane_row();
    if emulated {
        let (row, first_column) = share();
        for k in 0..comptime!(depth * BLOCK) {
            let left = a.at(a_row + row, k);
            #[unroll]
            for n in 0..blocks {
                let cells = strip.cells.index_mut(n);
                #[unroll]
                for j in 0..SHARE {
                    let column = n * BLOCK + first_column + j;
                    let right = if transposed { b.at(column, k) } else { b.at(k, column) };
                    cells[j] += left * right;
                }
            }
        }
    } else {
        #[unroll]
        for k in 0..depth {
            let left =
                fragment::<F, N>(a, a_row, k * BLOCK, MatrixIdent::A, MatrixLayout::RowMajor);
            #[unroll]
            for n in 0..blocks {
                let right = if transposed {
                    fragment::<F, M>(
                        b,
                        n * BLOCK,
                        k * BLOCK,
                        MatrixIdent::B,
                        MatrixLayout::ColMajor,
                    )
                } else {
                    fragment::<F, M>(
                        b,
                        k * BLOCK,
                        n * BLOCK,
                        MatrixIdent::B,
                        MatrixLayout::RowMajor,
                    )
                };
                let sum = strip.fragments.index(n);
                cmma::execute(&left, &right, sum, sum);
            }
        }
    }
}

#[cube]
fn fragment<F: Float, N: Size>(
    rows: &Rows<F, N>,
    row: usize,
    column: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
) -> cmma::Matrix<Vector<F, N>> {
    let start = (row * rows.pitch + column) / N::value();
    let block = &rows.data[start..rows.data.len()];
    let pitch = comptime!(rows.pitch as u32);
    cmma::Matrix::<Vector<F, N>>::from_slice(ident, BLOCK, BLOCK, BLOCK, layout, block, pitch)
}

/// Writes block `n` of the strip to shared memory: its first cell at `start`, rows `pitch` apart.
#[cube]
pub(super) fn put(
    strip: &Strip,
    #[comptime] n: usize,
    target: &mut Shared<[f32]>,
    start: usize,
    #[comptime] pitch: usize,
    #[comptime] emulated: bool,
) {
    if emulated {
        let (row, first_column) = share();
        let cells = strip.cells.index(n);
        #[unroll]
        for j in 0..SHARE {
            target[start + row * pitch + first_column + j] = cells[j];
        }
    } else {
        let end = target.len();
        cmma::store(
            &mut target[start..end],
            strip.fragments.index(n),
            comptime!(pitch as u32),
            MatrixLayout::RowMajor,
        );
    }
}

/// The reverse of [`put`].
#[cube]
pub(super) fn take(
    strip: &mut Strip,
    #[comptime] n: usize,
    source: &Shared<[f32]>,
    start: usize,
    #[comptime] pitch: usize,
    #[comptime] emulated: bool,
) {
    if emulated {
        let (row, first_column) = share();
        let cells = strip.cells.index_mut(n);
        #[unroll]
        for j in 0..SHARE {
            cells[j] = source[start + row * pitch + first_column + j];
        }
    } else {
        cmma::load_with_layout(
            strip.fragments.index_mut(n),
            &source[start..source.len()],
            comptime!(pitch as u32),
            MatrixLayout::RowMajor,
        );
    }
}

/// The row of the unit, counted through the planes of the cube: two units share one.
#[cube]
pub(super) fn unit_row() -> usize {
    UNIT_POS as usize / 2
}

/// The first row of the unit's plane, counted likewise.
#[cube]
pub(super) fn plane_row() -> usize {
    UNIT_POS as usize / PLANE * BLOCK
}

/// The row, within its strip, and the first column of the cells that an emulating unit keeps.
#[cube]
fn share() -> (usize, usize) {
    let unit = UNIT_POS as usize % PLANE;
    (unit / 2, unit % 2 * SHARE)
}

/// A barrier for what the units of a plane share.
#[cube]
pub(super) fn sync_strip(#[comptime] emulated: bool) {
    if emulated {
        sync_cube();
    } else {
        sync_plane();
    }
}

/// Whether `condition` holds for some unit that [`sync_strip`] waits for. `flags` has a place for each
/// unit of the cube, and is free again after the next barrier.
#[cube]
pub(super) fn any(
    condition: bool,
    flags: &mut Shared<[u32]>,
    #[comptime] units: usize,
    #[comptime] emulated: bool,
) -> bool {
    if emulated {
        flags[UNIT_POS as usize] = u32::cast_from(condition);
        sync_cube();
        let mut found = 0_u32;
        for unit in 0..units {
            found |= flags[unit];
        }
        found == 1
    } else {
        plane_any(condition)
    }
}
