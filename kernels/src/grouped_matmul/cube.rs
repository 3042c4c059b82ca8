//! Grouped products on CubeCL devices, in f32 arithmetic on ordinary units: a cube of 256 units owns a tile of 64 x 64
//! elements of the result of one expert, of which each unit keeps 4 x 4 in registers, and goes over the inner dim in
//! steps of 16 through 8.5 KiB of shared memory. The host cuts the rows of each expert into tiles, so that no cube is
//! without work.

use burn::backend::TensorMetadata;
use burn::backend::ops::IntTensorOps;
use burn::tensor::TensorData;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::{cubes, element, empty, into_contiguous};

/// Rows, and columns, of a tile.
const TILE: usize = 64;
/// Units along each side of a tile.
const SIDE: usize = 16;
/// Units of a cube.
const UNITS: usize = SIDE * SIDE;
/// Rows, and columns, of a tile that a unit owns.
const CELLS: usize = TILE / SIDE;
/// Elements of the inner dim that are in shared memory at once.
const STEP: usize = 16;

/// `x_e W[e]` for the rows of each expert.
pub(super) fn product(x: CubeTensor, weights: CubeTensor, counts: &[usize]) -> CubeTensor {
    let width = weights.shape()[2];
    by_rows(x, weights, counts, width, false)
}

/// `dy_e W[e]^T` for the rows of each expert.
pub(super) fn input_gradient(
    gradient: CubeTensor,
    weights: CubeTensor,
    counts: &[usize],
) -> CubeTensor {
    let width = weights.shape()[1];
    by_rows(gradient, weights, counts, width, true)
}

fn by_rows(
    x: CubeTensor,
    weights: CubeTensor,
    counts: &[usize],
    width: usize,
    transposed: bool,
) -> CubeTensor {
    let (x, weights) = (into_contiguous(x), into_contiguous(weights));
    let [rows, inner] = x.shape().dims();
    let output = empty(&x, [rows, width], x.dtype());
    let tiles = tiles(counts);
    let count = tiles.len() / 3 * width.div_ceil(TILE);
    if count > 0 {
        let tiles = table(tiles, &x);
        let types = [element(&x), element(&weights)];
        kernel::by_rows::launch(
            &output.client,
            cubes(count),
            CubeDim::new_1d(UNITS as u32),
            x.into_tensor_arg(),
            weights.into_tensor_arg(),
            tiles.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            count,
            inner,
            width,
            transposed,
            types,
        );
    }
    output
}

/// `x_e^T dy_e` for the rows of each expert: zeros where there are none.
pub(super) fn weight_gradient(x: CubeTensor, gradient: CubeTensor, counts: &[usize]) -> CubeTensor {
    let (x, gradient) = (into_contiguous(x), into_contiguous(gradient));
    let (inputs, outputs) = (x.shape()[1], gradient.shape()[1]);
    let output = empty(&x, [counts.len(), inputs, outputs], x.dtype());
    let count = counts.len() * inputs.div_ceil(TILE) * outputs.div_ceil(TILE);
    if count > 0 {
        let ends = table(ends(counts), &x);
        let types = [element(&x), element(&gradient)];
        kernel::weight_gradient::launch(
            &output.client,
            cubes(count),
            CubeDim::new_1d(UNITS as u32),
            x.into_tensor_arg(),
            gradient.into_tensor_arg(),
            ends.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            count,
            inputs,
            outputs,
            types,
        );
    }
    output
}

/// The tiles of rows of all experts: of each its expert, its first row, and the row after the last of the expert.
fn tiles(counts: &[usize]) -> Vec<i32> {
    let mut tiles = Vec::new();
    for (expert, end) in ends(counts).into_iter().enumerate() {
        let first = end - counts[expert] as i32;
        tiles.extend((first..end).step_by(TILE).flat_map(|row| [expert as i32, row, end]));
    }
    tiles
}

/// The row after the last of each expert.
fn ends(counts: &[usize]) -> Vec<i32> {
    let mut end = 0;
    let next = |count: &usize| {
        end += *count as i32;
        end
    };
    counts.iter().map(next).collect()
}

/// Small numbers on the device of `like`.
fn table(values: Vec<i32>, like: &CubeTensor) -> CubeTensor {
    let length = values.len();
    into_contiguous(CubeBackend::int_from_data(TensorData::new(values, [length]), &like.device))
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// A matrix inside a tensor.
    #[derive(CubeType)]
    struct View {
        start: usize,
        /// Distances of its rows and of its columns.
        row: usize,
        column: usize,
        rows: usize,
        columns: usize,
    }

    /// Loads a part of a matrix, and zeros where it has ended. `along`: its rows are what is contiguous.
    #[cube]
    fn load<F: Float>(
        tensor: &Tensor<F>,
        view: &View,
        first_row: usize,
        first_column: usize,
        part: &mut Shared<[f32]>,
        #[comptime] rows: usize,
        #[comptime] columns: usize,
        #[comptime] along: bool,
    ) {
        #[unroll]
        for step in 0..comptime!(rows * columns / UNITS) {
            let i = UNIT_POS as usize + step * UNITS;
            let (y, x) = if along { (i / columns, i % columns) } else { (i % rows, i / rows) };
            let (row, column) = (first_row + y, first_column + x);
            let mut value = 0.0_f32;
            if row < view.rows && column < view.columns {
                value = f32::cast_from(tensor[view.start + row * view.row + column * view.column]);
            }
            part[y * comptime!(columns + 1) + x] = value;
        }
    }

    /// The tile of `A B` that begins at a row of `A` and a column of `B`.
    #[cube]
    fn multiply<F: Float, G: Float>(
        a: &Tensor<F>,
        a_view: &View,
        first_row: usize,
        b: &Tensor<G>,
        b_view: &View,
        first_column: usize,
        cells: &mut Array<f32>,
        #[comptime] a_along: bool,
        #[comptime] b_along: bool,
    ) {
        let mut a_part = Shared::<[f32]>::new_slice(comptime!(TILE * (STEP + 1)));
        let mut b_part = Shared::<[f32]>::new_slice(comptime!(STEP * (TILE + 1)));
        let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
        #[unroll]
        for cell in 0..CELLS * CELLS {
            cells[cell] = 0.0_f32;
        }
        let mut first = 0_usize;
        while first < a_view.columns {
            load::<F>(a, a_view, first_row, first, &mut a_part, TILE, STEP, a_along);
            load::<G>(b, b_view, first, first_column, &mut b_part, STEP, TILE, b_along);
            sync_cube();
            for k in 0..STEP {
                let mut left = Array::<f32>::new(CELLS);
                let mut right = Array::<f32>::new(CELLS);
                #[unroll]
                for i in 0..CELLS {
                    left[i] = a_part[(y * CELLS + i) * (STEP + 1) + k];
                    right[i] = b_part[k * (TILE + 1) + x + SIDE * i];
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
            first += STEP;
        }
    }

    /// Writes a tile of a matrix, as far as the matrix goes.
    #[cube]
    fn store<F: Float>(
        cells: &Array<f32>,
        tensor: &mut Tensor<F>,
        view: &View,
        first_row: usize,
        first_column: usize,
    ) {
        let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
        #[unroll]
        for i in 0..CELLS {
            #[unroll]
            for j in 0..CELLS {
                let (row, column) = (first_row + y * CELLS + i, first_column + x + SIDE * j);
                if row < view.rows && column < view.columns {
                    let at = view.start + row * view.row + column * view.column;
                    tensor[at] = F::cast_from(cells[i * CELLS + j]);
                }
            }
        }
    }

    /// A tile of `x_e W[e]`, or of `x_e W[e]^T`.
    #[cube(launch)]
    pub(super) fn by_rows<F: Float, G: Float>(
        x: &Tensor<F>,
        weights: &Tensor<G>,
        tiles: &Tensor<i32>,
        output: &mut Tensor<F>,
        cubes: usize,
        inner: usize,
        width: usize,
        #[comptime] transposed: bool,
        #[define(F, G)] _types: [ElemType; 2],
    ) {
        if CUBE_POS >= cubes {
            terminate!();
        }
        let columns = width.div_ceil(TILE);
        let tile = CUBE_POS / columns * 3;
        let first_column = CUBE_POS % columns * TILE;
        let expert = tiles[tile] as usize;
        let first = tiles[tile + 1] as usize;
        let rows = tiles[tile + 2] as usize - first;
        let x_view = View { start: first * inner, row: inner, column: 1, rows, columns: inner };
        let (row, column) = if transposed { (1, inner) } else { (width, 1) };
        let weight =
            View { start: expert * inner * width, row, column, rows: inner, columns: width };
        let mut cells = Array::<f32>::new(CELLS * CELLS);
        multiply::<F, G>(
            x,
            &x_view,
            0,
            weights,
            &weight,
            first_column,
            &mut cells,
            true,
            comptime!(!transposed),
        );
        let result = View { start: first * width, row: width, column: 1, rows, columns: width };
        store::<F>(&cells, output, &result, 0, first_column);
    }

    /// A tile of `x_e^T dy_e`.
    #[cube(launch)]
    pub(super) fn weight_gradient<F: Float, G: Float>(
        x: &Tensor<F>,
        gradient: &Tensor<G>,
        ends: &Tensor<i32>,
        output: &mut Tensor<F>,
        cubes: usize,
        inputs: usize,
        outputs: usize,
        #[define(F, G)] _types: [ElemType; 2],
    ) {
        if CUBE_POS >= cubes {
            terminate!();
        }
        let columns = outputs.div_ceil(TILE);
        let tiles = inputs.div_ceil(TILE) * columns;
        let expert = CUBE_POS / tiles;
        let first_row = CUBE_POS % tiles / columns * TILE;
        let first_column = CUBE_POS % columns * TILE;
        let mut first = 0_usize;
        if expert > 0 {
            first = ends[max(expert, 1) - 1] as usize;
        }
        let rows = ends[expert] as usize - first;
        let x_view =
            View { start: first * inputs, row: 1, column: inputs, rows: inputs, columns: rows };
        let gradient_view =
            View { start: first * outputs, row: outputs, column: 1, rows, columns: outputs };
        let mut cells = Array::<f32>::new(CELLS * CELLS);
        multiply::<F, G>(
            x,
            &x_view,
            first_row,
            gradient,
            &gradient_view,
            first_column,
            &mut cells,
            false,
            true,
        );
        let start = expert * inputs * outputs;
        let result = View { start, row: outputs, column: 1, rows: inputs, columns: outputs };
        store::<F>(&cells, output, &result, first_row, first_column);
    }
}
