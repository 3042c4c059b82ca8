//! The forward kernel: a cube owns a tile of queries of one head and walks over the tiles of keys that any
//! of them sees, with an online softmax.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::tile::*;

pub(super) mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    #[cube(launch)]
    pub fn forward<F: Float>(
        query: &Tensor<F>,
        key: &Tensor<F>,
        value: &Tensor<F>,
        visible: &Tensor<u32>,
        output: &mut Tensor<F>,
        log_sum_exp: &mut Tensor<f32>,
        cubes: usize,
        scale: f32,
        cap: f32,
        minus_infinity: f32,
        #[comptime] head_dim: usize,
        #[comptime] capped: bool,
        #[define(F)] _type: ElemType,
    ) {
        let mut a = Shared::<[f32]>::new_slice(TILE * CHUNK_PITCH);
        let mut b = Shared::<[f32]>::new_slice(TILE * CHUNK_PITCH);
        let mut p = Shared::<[f32]>::new_slice(TILE * SCORE_PITCH);
        let mut shares = Shared::<[f32]>::new_slice(TILE * SIDE);
        if CUBE_POS >= cubes {
            terminate!();
        }
        let (heads, queries) = (query.shape(1), query.shape(2));
        let tiles = queries.div_ceil(TILE);
        let first_query = CUBE_POS % tiles * TILE;
        let head = CUBE_POS / tiles % heads;
        let batch = CUBE_POS / tiles / heads;
        let kv_head = head / (heads / key.shape(1));
        let q = head_of::<F>(query, batch, head);
        let k = head_of::<F>(key, batch, kv_head);
        let v = head_of::<F>(value, batch, kv_head);

        let span = keys_seen(visible, batch, first_query, TILE);
        let nothing = NOTHING.runtime();
        let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
        let mut first = Array::<usize>::new(CELLS);
        let mut end = Array::<usize>::new(CELLS);
        let mut top = Array::<f32>::new(CELLS);
        let mut sum = Array::<f32>::new(CELLS);
        #[unroll]
        for i in 0..CELLS {
            let row = first_query + y * CELLS + i;
            first[i] = 0;
            end[i] = 0;
            if row < queries {
                first[i] = visible[2 * (batch * queries + row)] as usize;
                end[i] = visible[2 * (batch * queries + row) + 1] as usize;
            }
            top[i] = nothing;
            sum[i] = 0.0_f32;
        }
        let mut cells = Array::<f32>::new(CELLS * CELLS);
        let mut out = Array::<f32>::new(comptime!(head_dim.div_ceil(CHUNK) * CELLS * CHUNK_CELLS));
        #[unroll]
        for i in 0..comptime!(head_dim.div_ceil(CHUNK) * CELLS * CHUNK_CELLS) {
            out[i] = 0.0_f32;
        }

        let mut first_key = span.first / TILE * TILE;
        while first_key < span.end {
            row_products::<F>(
                query,
                &q,
                first_query,
                key,
                &k,
                first_key,
                &mut a,
                &mut b,
                &mut cells,
                head_dim,
            );
            #[unroll]
            for i in 0..CELLS {
                let mut largest = nothing;
                #[unroll]
                for j in 0..CELLS {
                    let at = first_key + x + SIDE * j;
                    let score = capped_score(cells[i * CELLS + j] * scale, cap, capped);
                    let seen = at >= first[i] && at < end[i];
                    cells[i * CELLS + j] = select(seen, score, nothing);
                    largest = max(largest, cells[i * CELLS + j]);
                }
                shares[(y * CELLS + i) * SIDE + x] = largest;
            }
            sync_cube();
            #[unroll]
            for i in 0..CELLS {
                let mut new_top = top[i];
                #[unroll]
                for unit in 0..SIDE {
                    new_top = max(new_top, shares[(y * CELLS + i) * SIDE + unit]);
                }
                let shrink = (top[i] - new_top).exp();
                top[i] = new_top;
                sum[i] *= shrink;
                #[unroll]
                for j in 0..CELLS {
                    let at = first_key + x + SIDE * j;
                    let seen = at >= first[i] && at < end[i];
                    let weight = select(seen, (cells[i * CELLS + j] - new_top).exp(), 0.0_f32);
                    p[(y * CELLS + i) * SCORE_PITCH + x + SIDE * j] = weight;
                    sum[i] += weight;
                }
                #[unroll]
                for chunk in 0..comptime!(head_dim.div_ceil(CHUNK)) {
                    #[unroll]
                    for j in 0..CHUNK_CELLS {
                        out[(chunk * CELLS + i) * CHUNK_CELLS + j] *= shrink;
                    }
                }
            }
            #[unroll]
            for chunk in 0..comptime!(head_dim.div_ceil(CHUNK)) {
                load::<F>(value, &v, first_key, chunk * CHUNK, &mut b, head_dim);
                sync_cube();
                score_products(&p, &b, &mut out, chunk * CELLS * CHUNK_CELLS, false);
                sync_cube();
            }
            first_key += TILE;
        }

        // Each unit has summed its own columns.
        #[unroll]
        for i in 0..CELLS {
            shares[(y * CELLS + i) * SIDE + x] = sum[i];
        }
        sync_cube();
        #[unroll]
        for i in 0..CELLS {
            let row = first_query + y * CELLS + i;
            let mut total = 0.0_f32;
            #[unroll]
            for unit in 0..SIDE {
                total += shares[(y * CELLS + i) * SIDE + unit];
            }
            let empty = first[i] >= end[i];
            sum[i] = select(empty, 0.0_f32, 1.0 / total);
            if x == 0 && row < queries {
                let at = (batch * heads + head) * queries + row;
                log_sum_exp[at] = select(empty, minus_infinity, top[i] + total.ln());
            }
        }
        let place = Head {
            start: batch * output.stride(0) + head * output.stride(1),
            stride: output.stride(2),
            rows: queries,
        };
        store::<F>(&out, &sum, output, &place, first_query, head_dim);
    }
}
