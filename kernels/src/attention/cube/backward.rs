//! The backward kernels. Scores are computed anew, once for `dQ` and once for `dK` and `dV`.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::tile::*;

/// From the unit's products `Q K^T` (in `p`) and `dO V^T` (in `ds`) to its parts of `P` and of `dS`.
#[cube]
fn probabilities(
    p: &mut Array<f32>,
    ds: &mut Array<f32>,
    visible: &Tensor<u32>,
    statistics: &Tensor<f32>,
    batch: usize,
    head: usize,
    heads: usize,
    first_query: usize,
    queries: usize,
    first_key: usize,
    scale: f32,
    cap: f32,
    #[comptime] capped: bool,
) {
    let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for i in 0..CELLS {
        let row = first_query + y * CELLS + i;
        let mut first = 0_usize;
        let mut end = 0_usize;
        let mut log_sum_exp = 0.0_f32;
        let mut d = 0.0_f32;
        if row < queries {
            let at = 2 * (batch * queries + row);
            first = visible[at] as usize;
            end = visible[at + 1] as usize;
            let at = 2 * ((batch * heads + head) * queries + row);
            log_sum_exp = statistics[at];
            d = statistics[at + 1];
        }
        #[unroll]
        for j in 0..CELLS {
            let key = first_key + x + SIDE * j;
            let score = capped_score(p[i * CELLS + j] * scale, cap, capped);
            let mut weight = 0.0_f32;
            let mut gradient = 0.0_f32;
            if key >= first && key < end {
                weight = (score - log_sum_exp).exp();
                gradient = weight * (ds[i * CELLS + j] - d);
                if capped {
                    let bend = score / cap;
                    gradient *= 1.0 - bend * bend;
                }
            }
            p[i * CELLS + j] = weight;
            ds[i * CELLS + j] = gradient;
        }
    }
}

/// Puts the unit's cells into a tile of scores.
#[cube]
fn put(cells: &Array<f32>, tile: &mut Shared<[f32]>) {
    let (y, x) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for i in 0..CELLS {
        #[unroll]
        for j in 0..CELLS {
            tile[(y * CELLS + i) * SCORE_PITCH + x + SIDE * j] = cells[i * CELLS + j];
        }
    }
}

pub(super) mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// A unit a row: its log-sum-exp, and `D = rowsum(dO * O)`.
    #[cube(launch)]
    pub fn statistics<F: Float, G: Float>(
        output: &Tensor<F>,
        gradient: &Tensor<G>,
        log_sum_exp: &Tensor<f32>,
        statistics: &mut Tensor<f32>,
        rows: usize,
        #[define(F, G)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= rows {
            terminate!();
        }
        let (heads, queries) = (output.shape(1), output.shape(2));
        let head = ABSOLUTE_POS / queries;
        let query = ABSOLUTE_POS % queries;
        let out = head_of::<F>(output, head / heads, head % heads);
        let grad = head_of::<G>(gradient, head / heads, head % heads);
        let mut d = 0.0_f32;
        for column in 0..output.shape(3) {
            let o = f32::cast_from(output[out.start + query * out.stride + column]);
            d += o * f32::cast_from(gradient[grad.start + query * grad.stride + column]);
        }
        statistics[2 * ABSOLUTE_POS] = log_sum_exp[ABSOLUTE_POS];
        statistics[2 * ABSOLUTE_POS + 1] = d;
    }

    /// `dQ = scale dS K` of a tile of queries, over the tiles of keys that any of them sees.
    #[cube(launch)]
    pub fn query_gradient<F: Float>(
        query: &Tensor<F>,
        key: &Tensor<F>,
        value: &Tensor<F>,
        gradient: &Tensor<F>,
        visible: &Tensor<u32>,
        statistics: &Tensor<f32>,
        d_query: &mut Tensor<F>,
        cubes: usize,
        scale: f32,
        cap: f32,
        #[comptime] head_dim: usize,
        #[comptime] capped: bool,
        #[define(F)] _type: ElemType,
    ) {
        let mut a = Shared::<[f32]>::new_slice(TILE * CHUNK_PITCH);
        let mut b = Shared::<[f32]>::new_slice(TILE * CHUNK_PITCH);
        let mut tile = Shared::<[f32]>::new_slice(TILE * SCORE_PITCH);
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
        let g = head_of::<F>(gradient, batch, head);
        let k = head_of::<F>(key, batch, kv_head);
        let v = head_of::<F>(value, batch, kv_head);
        let span = keys_seen(visible, batch, first_query, TILE);
        let mut p = Array::<f32>::new(CELLS * CELLS);
        let mut ds = Array::<f32>::new(CELLS * CELLS);
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
                &mut p,
                head_dim,
            );
            row_products::<F>(
                gradient,
                &g,
                first_query,
                value,
                &v,
                first_key,
                &mut a,
                &mut b,
                &mut ds,
                head_dim,
            );
            probabilities(
                &mut p,
                &mut ds,
                visible,
                statistics,
                batch,
                head,
                heads,
                first_query,
                queries,
                first_key,
                scale,
                cap,
                capped,
            );
            put(&ds, &mut tile);
            #[unroll]
            for chunk in 0..comptime!(head_dim.div_ceil(CHUNK)) {
                load::<F>(key, &k, first_key, chunk * CHUNK, &mut b, head_dim);
                sync_cube();
                score_products(&tile, &b, &mut out, chunk * CELLS * CHUNK_CELLS, false);
                sync_cube();
            }
            first_key += TILE;
        }
        let mut factor = Array::<f32>::new(CELLS);
        #[unroll]
        for i in 0..CELLS {
            factor[i] = scale;
        }
        let place = Head {
            start: batch * d_query.stride(0) + head * d_query.stride(1),
            stride: d_query.stride(2),
            rows: queries,
        };
        store::<F>(&out, &factor, d_query, &place, first_query, head_dim);
    }

    /// `dK = scale dS^T Q` and `dV = P^T dO` of a tile of keys, over the heads of the group and the
    /// tiles of queries that see any of them. `d_both` is `[2, batch, kv_heads, keys, head_dim]`.
    #[cube(launch)]
    pub fn key_value_gradient<F: Float>(
        query: &Tensor<F>,
        key: &Tensor<F>,
        value: &Tensor<F>,
        gradient: &Tensor<F>,
        visible: &Tensor<u32>,
        statistics: &Tensor<f32>,
        d_both: &mut Tensor<F>,
        cubes: usize,
        scale: f32,
        cap: f32,
        #[comptime] head_dim: usize,
        #[comptime] capped: bool,
        #[define(F)] _type: ElemType,
    ) {
        let mut a = Shared::<[f32]>::new_slice(TILE * CHUNK_PITCH);
        let mut b = Shared::<[f32]>::new_slice(TILE * CHUNK_PITCH);
        let mut tile = Shared::<[f32]>::new_slice(TILE * SCORE_PITCH);
        let mut ends = Shared::<[u32]>::new_slice(2 * UNITS);
        if CUBE_POS >= cubes {
            terminate!();
        }
        let (heads, queries) = (query.shape(1), query.shape(2));
        let (kv_heads, keys) = (key.shape(1), key.shape(2));
        let tiles = keys.div_ceil(TILE);
        let first_key = CUBE_POS % tiles * TILE;
        let kv_head = CUBE_POS / tiles % kv_heads;
        let batch = CUBE_POS / tiles / kv_heads;
        let group = heads / kv_heads;
        let k = head_of::<F>(key, batch, kv_head);
        let v = head_of::<F>(value, batch, kv_head);

        let seeing = queries_seeing(visible, batch, first_key, &mut ends, TILE, UNITS);
        let mut p = Array::<f32>::new(CELLS * CELLS);
        let mut ds = Array::<f32>::new(CELLS * CELLS);
        let mut dk = Array::<f32>::new(comptime!(head_dim.div_ceil(CHUNK) * CELLS * CHUNK_CELLS));
        let mut dv = Array::<f32>::new(comptime!(head_dim.div_ceil(CHUNK) * CELLS * CHUNK_CELLS));
        #[unroll]
        for i in 0..comptime!(head_dim.div_ceil(CHUNK) * CELLS * CHUNK_CELLS) {
            dk[i] = 0.0_f32;
            dv[i] = 0.0_f32;
        }
        for member in 0..group {
            let head = kv_head * group + member;
            let q = head_of::<F>(query, batch, head);
            let g = head_of::<F>(gradient, batch, head);
            let mut first_query = seeing.first / TILE * TILE;
            while first_query < seeing.end {
                row_products::<F>(
                    query,
                    &q,
                    first_query,
                    key,
                    &k,
                    first_key,
                    &mut a,
                    &mut b,
                    &mut p,
                    head_dim,
                );
                row_products::<F>(
                    gradient,
                    &g,
                    first_query,
                    value,
                    &v,
                    first_key,
                    &mut a,
                    &mut b,
                    &mut ds,
                    head_dim,
                );
                probabilities(
                    &mut p,
                    &mut ds,
                    visible,
                    statistics,
                    batch,
                    head,
                    heads,
                    first_query,
                    queries,
                    first_key,
                    scale,
                    cap,
                    capped,
                );
                put(&p, &mut tile);
                #[unroll]
                for chunk in 0..comptime!(head_dim.div_ceil(CHUNK)) {
                    load::<F>(gradient, &g, first_query, chunk * CHUNK, &mut b, head_dim);
                    sync_cube();
                    score_products(&tile, &b, &mut dv, chunk * CELLS * CHUNK_CELLS, true);
                    sync_cube();
                }
                put(&ds, &mut tile);
                #[unroll]
                for chunk in 0..comptime!(head_dim.div_ceil(CHUNK)) {
                    load::<F>(query, &q, first_query, chunk * CHUNK, &mut b, head_dim);
                    sync_cube();
                    score_products(&tile, &b, &mut dk, chunk * CELLS * CHUNK_CELLS, true);
                    sync_cube();
                }
                first_query += TILE;
            }
        }
        let mut factor = Array::<f32>::new(CELLS);
        let mut one = Array::<f32>::new(CELLS);
        #[unroll]
        for i in 0..CELLS {
            factor[i] = scale;
            one[i] = 1.0_f32;
        }
        let start = (batch * kv_heads + kv_head) * keys * head_dim;
        let place = Head { start, stride: head_dim.runtime(), rows: keys };
        store::<F>(&dk, &factor, d_both, &place, first_key, head_dim);
        let start = start + d_both.stride(0);
        let place = Head { start, stride: head_dim.runtime(), rows: keys };
        store::<F>(&dv, &one, d_both, &place, first_key, head_dim);
    }
}
