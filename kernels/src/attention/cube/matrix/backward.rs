//! The backward kernels. Where keys are the rows that planes own, the scores are computed transposed
//! (`K Q^T`): then `P^T` and `dS^T` are already the left sides that `dV` and `dK` need, and no strip ever
//! leaves its plane. Scores are capped and masked in f32; `P` and `dS` are rounded to the element type.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::super::tile::{Head, capped_score, keys_seen, queries_seeing};
use super::strip::*;
use super::tile::*;

/// What a tile of queries needs for its weights, in shared memory.
#[derive(CubeType)]
struct Queries {
    /// First and end key of each.
    visible: Shared<[u32]>,
    /// Log-sum-exp and `D` of each.
    statistics: Shared<[f32]>,
}

#[cube]
impl Queries {
    fn new(#[comptime] count: usize) -> Queries {
        Queries {
            visible: Shared::new_slice(comptime!(2 * count)),
            statistics: Shared::new_slice(comptime!(2 * count)),
        }
    }

    /// Loads `count` queries; those that do not exist see nothing.
    fn load(
        &mut self,
        visible: &Tensor<u32>,
        statistics: &Tensor<f32>,
        batch: usize,
        head: usize,
        first_query: usize,
        #[comptime] count: usize,
        #[comptime] plan: Plan,
    ) {
        let (heads, queries) = (statistics.shape(1), statistics.shape(2));
        let mut i = UNIT_POS as usize;
        while i < comptime!(2 * count) {
            let at = 2 * first_query + i;
            let mut key = 0_u32;
            let mut statistic = 0.0_f32;
            if at < 2 * queries {
                key = visible[2 * batch * queries + at];
                statistic = statistics[2 * (batch * heads + head) * queries + at];
            }
            self.visible[i] = key;
            self.statistics[i] = statistic;
            i += comptime!(plan.units());
        }
    }
}

/// From the products `Q K^T` in `scores`, for each of the unit's scores: `dS / (dP - D)` into `cells` and,
/// where keys are the rows, `P` into `weights`.
#[cube]
fn read_slopes<F: Float>(
    scores: &Shared<[f32]>,
    queries: &Queries,
    first_key: usize,
    cells: &mut Array<f32>,
    weights: &mut Rows<F, Const<1>>,
    scale: f32,
    cap: f32,
    #[comptime] keys_are_rows: bool,
    #[comptime] capped: bool,
    #[comptime] plan: Plan,
) {
    let row = unit_row();
    #[unroll]
    for j in 0..comptime!(plan.cells()) {
        let column = 2 * j + UNIT_POS as usize % 2;
        let (query, key) =
            if keys_are_rows { (column, first_key + row) } else { (row, first_key + column) };
        let product = scores[row * comptime!(plan.score_pitch()) + column] * scale;
        let score = capped_score(product, cap, capped);
        let first = queries.visible[2 * query] as usize;
        let end = queries.visible[2 * query + 1] as usize;
        let seen = key >= first && key < end;
        let weight = select(seen, (score - queries.statistics[2 * query]).exp(), 0.0_f32);
        cells[j] = weight;
        if capped {
            let bend = score / cap;
            cells[j] = weight * (1.0 - bend * bend);
        }
        if keys_are_rows {
            weights.data[row * comptime!(plan.weight_pitch()) + column] =
                Vector::new(F::cast_from(weight));
        }
    }
}

/// `dS` of the unit's scores into `weights`, from the products `dO V^T` in `scores` and from what
/// [`read_slopes`] left in `cells`.
#[cube]
fn write_gradients<F: Float>(
    scores: &Shared<[f32]>,
    queries: &Queries,
    cells: &Array<f32>,
    weights: &mut Rows<F, Const<1>>,
    #[comptime] keys_are_rows: bool,
    #[comptime] plan: Plan,
) {
    let row = unit_row();
    #[unroll]
    for j in 0..comptime!(plan.cells()) {
        let column = 2 * j + UNIT_POS as usize % 2;
        let query = if keys_are_rows { column } else { row };
        let product = scores[row * comptime!(plan.score_pitch()) + column];
        let gradient = cells[j] * (product - queries.statistics[2 * query + 1]);
        weights.data[row * comptime!(plan.weight_pitch()) + column] =
            Vector::new(F::cast_from(gradient));
    }
}

/// Puts `A B^T` into `scores`: the plane's rows of `a` with the rows of a tile. Ends with a barrier.
#[cube]
fn put_products<F: Float, N: Size>(
    a: &Rows<F, N>,
    b: &Rows<F, N>,
    scores: &mut Shared<[f32]>,
    #[comptime] plan: Plan,
) {
    let mut products = zeros(comptime!(plan.tile_blocks()), plan.emulated);
    multiply::<F, N, N>(
        &mut products,
        a,
        b,
        comptime!(plan.tile_blocks()),
        comptime!(plan.head_blocks()),
        true,
        plan.emulated,
    );
    put_scores(&products, scores, plan);
}

/// `sums += W B`: the plane's rows of weights with a tile of rows of a head.
#[cube]
fn add_weighted<F: Float, N: Size>(
    sums: &mut Strip,
    weights: &Rows<F, Const<1>>,
    b: &Rows<F, N>,
    #[comptime] plan: Plan,
) {
    multiply::<F, Const<1>, N>(
        sums,
        weights,
        b,
        comptime!(plan.head_blocks()),
        comptime!(plan.tile_blocks()),
        false,
        plan.emulated,
    );
}

pub(super) mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// `dQ = scale dS K` of a tile of queries, over the tiles of keys that any of them sees.
    #[cube(launch)]
    pub fn query_gradient<F: Float, N: Size>(
        query: &Tensor<Vector<F, N>>,
        key: &Tensor<Vector<F, N>>,
        value: &Tensor<Vector<F, N>>,
        gradient: &Tensor<Vector<F, N>>,
        visible: &Tensor<u32>,
        statistics: &Tensor<f32>,
        d_query: &mut Tensor<Vector<F, N>>,
        cubes: usize,
        scale: f32,
        cap: f32,
        #[comptime] plan: Plan,
        #[comptime] capped: bool,
        #[define(F)] _type: ElemType,
    ) {
        let (rows, tile) = comptime!((plan.rows(), plan.tile));
        let mut q_rows = Rows::<F, N>::new(rows, comptime!(plan.head_pitch()));
        let mut g_rows = Rows::<F, N>::new(rows, comptime!(plan.head_pitch()));
        let mut k_rows = Rows::<F, N>::new(tile, comptime!(plan.head_pitch()));
        let mut v_rows = Rows::<F, N>::new(tile, comptime!(plan.head_pitch()));
        let mut weights = Rows::<F, Const<1>>::new(rows, comptime!(plan.weight_pitch()));
        let mut scores = score_tile(plan);
        let mut of_queries = Queries::new(rows);
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
        let g = head_of::<F, N>(gradient, batch, head);
        load::<F, N>(query, &q, first_query, &mut q_rows, rows, plan);
        load::<F, N>(gradient, &g, first_query, &mut g_rows, rows, plan);
        of_queries.load(visible, statistics, batch, head, first_query, rows, plan);

        let mut dq = zeros(comptime!(plan.head_blocks()), plan.emulated);
        let mut cells = Array::<f32>::new(comptime!(plan.cells()));
        let span = keys_seen(visible, batch, first_query, rows);
        let mut first_key = span.first / tile * tile;
        while first_key < span.end {
            load::<F, N>(key, &k, first_key, &mut k_rows, tile, plan);
            load::<F, N>(value, &v, first_key, &mut v_rows, tile, plan);
            sync_cube();
            put_products::<F, N>(&q_rows, &k_rows, &mut scores, plan);
            read_slopes::<F>(
                &scores,
                &of_queries,
                first_key,
                &mut cells,
                &mut weights,
                scale,
                cap,
                false,
                capped,
                plan,
            );
            sync_strip(plan.emulated);
            put_products::<F, N>(&g_rows, &v_rows, &mut scores, plan);
            write_gradients::<F>(&scores, &of_queries, &cells, &mut weights, false, plan);
            sync_strip(plan.emulated);
            add_weighted::<F, N>(&mut dq, &weights, &k_rows, plan);
            sync_cube();
            first_key += tile;
        }
        let place = Head {
            start: (batch * d_query.stride(0) + head * d_query.stride(1)) / N::value(),
            stride: d_query.stride(2) / N::value(),
            rows: queries,
        };
        store::<F, N>(&dq, scale, &mut scores, d_query, &place, first_query, plan);
    }

    /// `dK = scale dS^T Q` and `dV = P^T dO` of a tile of keys, over the heads of the group and the
    /// tiles of queries that see any of them. `d_both` is `[2, batch, kv_heads, keys, head_dim]`.
    #[cube(launch)]
    pub fn key_value_gradient<F: Float, N: Size>(
        query: &Tensor<Vector<F, N>>,
        key: &Tensor<Vector<F, N>>,
        value: &Tensor<Vector<F, N>>,
        gradient: &Tensor<Vector<F, N>>,
        visible: &Tensor<u32>,
        statistics: &Tensor<f32>,
        d_both: &mut Tensor<Vector<F, N>>,
        cubes: usize,
        scale: f32,
        cap: f32,
        #[comptime] plan: Plan,
        #[comptime] capped: bool,
        #[define(F)] _type: ElemType,
    ) {
        let (rows, tile) = comptime!((plan.rows(), plan.tile));
        let mut k_rows = Rows::<F, N>::new(rows, comptime!(plan.head_pitch()));
        let mut v_rows = Rows::<F, N>::new(rows, comptime!(plan.head_pitch()));
        let mut q_rows = Rows::<F, N>::new(tile, comptime!(plan.head_pitch()));
        let mut g_rows = Rows::<F, N>::new(tile, comptime!(plan.head_pitch()));
        let mut weights = Rows::<F, Const<1>>::new(rows, comptime!(plan.weight_pitch()));
        let mut scores = score_tile(plan);
        let mut of_queries = Queries::new(tile);
        let mut ends = Shared::<[u32]>::new_slice(comptime!(2 * plan.units()));
        if CUBE_POS >= cubes {
            terminate!();
        }
        let (heads, keys) = (query.shape(1), key.shape(2));
        let kv_heads = key.shape(1);
        let tiles = keys.div_ceil(rows);
        let first_key = CUBE_POS % tiles * rows;
        let kv_head = CUBE_POS / tiles % kv_heads;
        let batch = CUBE_POS / tiles / kv_heads;
        let group = heads / kv_heads;
        let k = head_of::<F, N>(key, batch, kv_head);
        let v = head_of::<F, N>(value, batch, kv_head);
        load::<F, N>(key, &k, first_key, &mut k_rows, rows, plan);
        load::<F, N>(value, &v, first_key, &mut v_rows, rows, plan);

        let mut dk = zeros(comptime!(plan.head_blocks()), plan.emulated);
        let mut dv = zeros(comptime!(plan.head_blocks()), plan.emulated);
        let mut cells = Array::<f32>::new(comptime!(plan.cells()));
        let span =
            queries_seeing(visible, batch, first_key, &mut ends, rows, comptime!(plan.units()));
        for member in 0..group {
            let head = kv_head * group + member;
            let q = head_of::<F, N>(query, batch, head);
            let g = head_of::<F, N>(gradient, batch, head);
            let mut first_query = span.first / tile * tile;
            while first_query < span.end {
                load::<F, N>(query, &q, first_query, &mut q_rows, tile, plan);
                load::<F, N>(gradient, &g, first_query, &mut g_rows, tile, plan);
                of_queries.load(visible, statistics, batch, head, first_query, tile, plan);
                sync_cube();
                put_products::<F, N>(&k_rows, &q_rows, &mut scores, plan);
                read_slopes::<F>(
                    &scores,
                    &of_queries,
                    first_key,
                    &mut cells,
                    &mut weights,
                    scale,
                    cap,
                    true,
                    capped,
                    plan,
                );
                sync_strip(plan.emulated);
                add_weighted::<F, N>(&mut dv, &weights, &g_rows, plan);
                put_products::<F, N>(&v_rows, &g_rows, &mut scores, plan);
                write_gradients::<F>(&scores, &of_queries, &cells, &mut weights, true, plan);
                sync_strip(plan.emulated);
                add_weighted::<F, N>(&mut dk, &weights, &q_rows, plan);
                sync_cube();
                first_query += tile;
            }
        }
        let stride = comptime!(plan.head_dim) / N::value().comptime();
        let start = (batch * kv_heads + kv_head) * keys * stride;
        let place = Head { start, stride: stride.runtime(), rows: keys };
        store::<F, N>(&dk, scale, &mut scores, d_both, &place, first_key, plan);
        let start = start + d_both.stride(0) / N::value();
        let place = Head { start, stride: stride.runtime(), rows: keys };
        store::<F, N>(&dv, 1.0_f32.runtime(), &mut scores, d_both, &place, first_key, plan);
    }
}
