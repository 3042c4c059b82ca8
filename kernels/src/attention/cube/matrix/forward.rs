//! The forward kernel. Each plane owns 16 queries; scores, weights and output stay with it.
//!
//! Weights are `exp(S - top)` for a `top` that need not be the largest score: it follows only when some
//! score exceeds it by more than `patience`, as rescaling the fragments of the output is a trip through
//! shared memory (FlashAttention-4 does so). Since `top` divides out in the end, the result is
//! the same for every patience whose `exp` the element type can hold.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::super::tile::{Head, NOTHING, capped_score, keys_seen};
use super::strip::*;
use super::tile::*;

/// What a unit knows of its row: the keys seen, and the online softmax so far.
#[derive(CubeType)]
struct Row {
    first: usize,
    end: usize,
    top: f32,
    /// Of the unit's own columns.
    sum: f32,
}

/// The unit's scores of one tile of keys, capped and with [`NOTHING`] for keys not seen, and the
/// largest of the row.
#[cube]
fn read_scores(
    scores: &Shared<[f32]>,
    row: &Row,
    first_key: usize,
    cells: &mut Array<f32>,
    shares: &mut Shared<[f32]>,
    scale: f32,
    cap: f32,
    #[comptime] capped: bool,
    #[comptime] plan: Plan,
) -> f32 {
    let unit = UNIT_POS as usize;
    let mut largest = NOTHING.runtime();
    #[unroll]
    for j in 0..comptime!(plan.cells()) {
        let column = 2 * j + unit % 2;
        let key = first_key + column;
        let score = scores[unit_row() * comptime!(plan.score_pitch()) + column] * scale;
        let seen = key >= row.first && key < row.end;
        cells[j] = select(seen, capped_score(score, cap, capped), NOTHING.runtime());
        largest = max(largest, cells[j]);
    }
    shares[unit] = largest;
    sync_strip(plan.emulated);
    max(largest, shares[unit + 1 - 2 * (unit % 2)])
}

/// The weights of the unit's scores, into the tile of weights; their sum is added to the row's.
#[cube]
fn write_weights<F: Float>(
    cells: &Array<f32>,
    row: &mut Row,
    first_key: usize,
    weights: &mut Rows<F, Const<1>>,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for j in 0..comptime!(plan.cells()) {
        let column = 2 * j + UNIT_POS as usize % 2;
        let key = first_key + column;
        let seen = key >= row.first && key < row.end;
        let weight = select(seen, (cells[j] - row.top).exp(), 0.0_f32);
        row.sum += weight;
        weights.data[unit_row() * comptime!(plan.weight_pitch()) + column] =
            Vector::new(F::cast_from(weight));
    }
}

pub(super) mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube(launch)]
    pub fn forward<F: Float, N: Size>(
        query: &Tensor<Vector<F, N>>,
        key: &Tensor<Vector<F, N>>,
        value: &Tensor<Vector<F, N>>,
        visible: &Tensor<u32>,
        output: &mut Tensor<Vector<F, N>>,
        log_sum_exp: &mut Tensor<f32>,
        cubes: usize,
        scale: f32,
        cap: f32,
        patience: f32,
        minus_infinity: f32,
        #[comptime] plan: Plan,
        #[comptime] capped: bool,
        #[define(F)] _type: ElemType,
    ) {
        let tile = comptime!(plan.tile);
        let rows = comptime!(plan.rows());
        let mut q_rows = Rows::<F, N>::new(rows, comptime!(plan.head_pitch()));
        let mut k_rows = Rows::<F, N>::new(tile, comptime!(plan.head_pitch()));
        let mut v_rows = Rows::<F, N>::new(tile, comptime!(plan.head_pitch()));
        let mut weights = Rows::<F, Const<1>>::new(rows, comptime!(plan.weight_pitch()));
        let mut scores = score_tile(plan);
        let mut shares = Shared::<[f32]>::new_slice(comptime!(plan.units()));
        let mut flags = Shared::<[u32]>::new_slice(comptime!(plan.units()));
        if CUBE_POS >= cubes {
            terminate!();
        }
        let (heads, queries) = (query.shape(1), query.shape(2));
        let tiles = queries.div_ceil(rows);
        let first_query = CUBE_POS % tiles * rows;
        let head = CUBE_POS / tiles % heads;
        let batch = CUBE_POS / tiles / heads;
        let kv_head = head / (heads / key.shape(1));
        let k = head_of::<F, N>(key, batch, kv_head);
        let v = head_of::<F, N>(value, batch, kv_head);
        let q = head_of::<F, N>(query, batch, head);
        load::<F, N>(query, &q, first_query, &mut q_rows, rows, plan);

        let unit = UNIT_POS as usize;
        let own_query = first_query + unit_row();
        let mut row = Row { first: 0, end: 0, top: NOTHING.runtime(), sum: 0.0_f32.runtime() };
        if own_query < queries {
            row.first = visible[2 * (batch * queries + own_query)] as usize;
            row.end = visible[2 * (batch * queries + own_query) + 1] as usize;
        }
        let mut out = zeros(comptime!(plan.head_blocks()), plan.emulated);
        let mut cells = Array::<f32>::new(comptime!(plan.cells()));
        let span = keys_seen(visible, batch, first_query, rows);
        let mut first_key = span.first / tile * tile;
        while first_key < span.end {
            load::<F, N>(key, &k, first_key, &mut k_rows, tile, plan);
            load::<F, N>(value, &v, first_key, &mut v_rows, tile, plan);
            sync_cube();
            let mut products = zeros(comptime!(plan.tile_blocks()), plan.emulated);
            multiply::<F, N, N>(
                &mut products,
                &q_rows,
                &k_rows,
                comptime!(plan.tile_blocks()),
                comptime!(plan.head_blocks()),
                true,
                plan.emulated,
            );
            put_scores(&products, &mut scores, plan);
            let largest = read_scores(
                &scores,
                &row,
                first_key,
                &mut cells,
                &mut shares,
                scale,
                cap,
                capped,
                plan,
            );
            let exceeds = largest - row.top > patience;
            if any(exceeds, &mut flags, comptime!(plan.units()), plan.emulated) {
                let top = max(row.top, largest);
                let shrink = (row.top - top).exp();
                row.top = top;
                row.sum *= shrink;
                scale_rows(&mut out, shrink, &mut scores, plan);
            }
            write_weights::<F>(&cells, &mut row, first_key, &mut weights, plan);
            sync_strip(plan.emulated);
            multiply::<F, Const<1>, N>(
                &mut out,
                &weights,
                &v_rows,
                comptime!(plan.head_blocks()),
                comptime!(plan.tile_blocks()),
                false,
                plan.emulated,
            );
            sync_cube();
            first_key += tile;
        }

        // The two units of a row have summed its even and its odd columns.
        shares[unit] = row.sum;
        sync_strip(plan.emulated);
        let total = row.sum + shares[unit + 1 - 2 * (unit % 2)];
        let empty = row.first >= row.end;
        if unit.is_multiple_of(2) && own_query < queries {
            let at = (batch * heads + head) * queries + own_query;
            log_sum_exp[at] = select(empty, minus_infinity, row.top + total.ln());
        }
        let place = Head {
            start: (batch * output.stride(0) + head * output.stride(1)) / N::value(),
            stride: output.stride(2) / N::value(),
            rows: queries,
        };
        let factor = select(empty, 0.0_f32, 1.0 / total);
        store::<F, N>(&out, factor, &mut scores, output, &place, first_query, plan);
    }
}
