//! The backward pass: a task is a key head with the queries of one split, so that scores are computed
//! once for all three gradients. The gradients of keys and values are sums over the splits in order;
//! the splits depend on the problem's sizes alone.

use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::pack::{Rows, tiles, transposed_tiles};
use super::softmax::{cap, exponentials};
use super::{KEY_TILE, Problem, QUERY_TILE, Sizes, Span};
use crate::flex::{COLUMN_STEP, F32View, Strided, dot, float_tensor, multiply_tile, simd_fn};

/// Tasks that there should be, for many cores to share.
const TASKS: usize = 64;
/// Most splits of the queries: each has gradients of keys and values of its own.
const MAX_SPLITS: usize = 4;
/// Fewest queries of a split.
const MIN_SPLIT: usize = 512;

/// What all tasks read.
struct Backward<'a> {
    problem: &'a Problem,
    query: Rows<'a>,
    output: Rows<'a>,
    gradient: Rows<'a>,
    log_sum_exp: F32View,
    keys: Vec<f32>,
    keys_transposed: Vec<f32>,
    values_transposed: Vec<f32>,
    splits: usize,
    /// Queries of a split.
    split: usize,
}

/// The gradients that one task has summed.
struct Part {
    /// `[group, queries of the split, head_dim]`.
    query: Vec<f32>,
    /// The keys that the split sees, rounded to tiles.
    tiles: std::ops::Range<usize>,
    /// `[keys of the tiles, width]`.
    key: Vec<f32>,
    value: Vec<f32>,
}

impl Problem {
    /// The gradients of query, key and value.
    pub(in super::super) fn backward(
        &self,
        output: &FlexTensor,
        log_sum_exp: &FlexTensor,
        gradient: &FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let Sizes { batch, heads, kv_heads, queries, keys, head_dim, .. } = self.sizes;
        let (splits, split) = splits(self.sizes);
        let backward = Backward {
            problem: self,
            query: Rows::new(&self.query),
            output: Rows::new(output),
            gradient: Rows::new(gradient),
            log_sum_exp: F32View::new(log_sum_exp),
            keys: tiles(&self.key, self.sizes),
            keys_transposed: transposed_tiles(&self.key, self.sizes),
            values_transposed: transposed_tiles(&self.value, self.sizes),
            splits,
            split,
        };
        let tasks = batch * kv_heads * splits;
        let parts: Vec<Part> =
            (0..tasks).into_par_iter().map(|task| backward_task(&backward, task)).collect();
        drop(backward);
        let assembled = |rows: usize, heads: usize, fill: &RowOf, like: &FlexTensor| {
            let mut all = vec![0.0; batch * rows * heads * head_dim];
            let places = all.par_chunks_mut(head_dim.max(1)).enumerate().with_min_len(256);
            places.for_each(|(i, out)| fill([i / heads / rows, i % heads, i / heads % rows], out));
            let shape = Shape::new([batch, rows, heads, head_dim]);
            float_tensor(all, shape, like.dtype()).transpose(1, 2)
        };
        let key_row = |of: fn(&Part) -> &[f32], [batch, head, key]: [usize; 3], out: &mut [f32]| {
            let first = (batch * kv_heads + head) * splits;
            for part in &parts[first..first + splits] {
                part.add_row(of(part), key, self.sizes.width, out);
            }
        };
        (
            assembled(
                queries,
                heads,
                &|[batch, head, query], out| {
                    let group = heads / kv_heads;
                    let first = (batch * kv_heads + head / group) * splits;
                    let rows = split.min(queries - query / split * split);
                    let row = (head % group) * rows + query % split;
                    let part = &parts[first + query / split];
                    out.copy_from_slice(&part.query[row * head_dim..][..head_dim]);
                },
                &self.query,
            ),
            assembled(keys, kv_heads, &|at, out| key_row(|p| &p.key, at, out), &self.key),
            assembled(keys, kv_heads, &|at, out| key_row(|p| &p.value, at, out), &self.value),
        )
    }
}

/// Into how many splits the queries go, and the queries of each.
pub(super) fn splits(sizes: Sizes) -> (usize, usize) {
    let Sizes { batch, kv_heads, queries, .. } = sizes;
    let wanted = TASKS.div_ceil((batch * kv_heads).max(1)).min(MAX_SPLITS);
    let split = queries.div_ceil(wanted).max(MIN_SPLIT).next_multiple_of(QUERY_TILE);
    (queries.div_ceil(split), split)
}

/// Fills the gradient row at `[batch, head, position]`.
type RowOf<'a> = dyn Fn([usize; 3], &mut [f32]) + Sync + 'a;

impl Part {
    /// Adds the row of `key`, if the split has seen it.
    fn add_row(&self, rows: &[f32], key: usize, width: usize, out: &mut [f32]) {
        if !self.tiles.contains(&(key / KEY_TILE)) {
            return;
        }
        let row = &rows[(key - self.tiles.start * KEY_TILE) * width..];
        for (out, x) in out.iter_mut().zip(row) {
            *out += x;
        }
    }
}

/// The tiles that a task works on.
struct Scratch {
    query: Vec<f32>,
    gradient: Vec<f32>,
    output: Vec<f32>,
    p: Vec<f32>,
    ds: Vec<f32>,
    d_query: Vec<f32>,
}

impl Scratch {
    fn new(width: usize) -> Self {
        let rows = || vec![0.0; QUERY_TILE * width];
        let scores = || vec![0.0; QUERY_TILE * KEY_TILE];
        Self {
            query: rows(),
            gradient: rows(),
            output: rows(),
            p: scores(),
            ds: scores(),
            d_query: rows(),
        }
    }
}

simd_fn! {
    fn backward_task(backward: &'a Backward<'a>, task: usize) -> Part {
        let Sizes { kv_heads, queries, head_dim, width, .. } = backward.problem.sizes;
        let group = backward.problem.sizes.group();
        let (batch, kv_head) = (task / backward.splits / kv_heads, task / backward.splits % kv_heads);
        let start = task % backward.splits * backward.split;
        let rows = backward.split.min(queries - start);
        let visible = &backward.problem.visible[batch * queries..][..queries];
        let tiles = Span::around(&visible[start..start + rows]).tiles();
        let size = tiles.len() * KEY_TILE * width;
        let mut part = Part {
            query: vec![0.0; group * rows * head_dim],
            tiles,
            key: vec![0.0; size],
            value: vec![0.0; size],
        };
        let mut scratch = Scratch::new(width);
        for g in 0..group {
            for first in (start..start + rows).step_by(QUERY_TILE) {
                let tile = QUERY_TILE.min(start + rows - first);
                let at = [batch, kv_head * group + g, first];
                backward.query_tile(at, &visible[first..first + tile], &mut part, &mut scratch);
                let d_query = &mut part.query[(g * rows + first - start) * head_dim..];
                let rows = d_query.chunks_exact_mut(head_dim).zip(scratch.d_query.chunks_exact(width));
                for (out, row) in rows.take(tile) {
                    for (out, x) in out.iter_mut().zip(row) {
                        *out = x * backward.problem.scores.scale;
                    }
                }
            }
        }
        part
    }
}

impl Backward<'_> {
    /// Adds what one tile of queries of one head gives to the gradients of keys and values, and leaves
    /// the queries' own gradient, but for the scale, in `scratch`.
    #[inline(always)]
    fn query_tile(
        &self,
        [batch, head, first]: [usize; 3],
        visible: &[Span],
        part: &mut Part,
        scratch: &mut Scratch,
    ) {
        let Problem { sizes, scores, .. } = *self.problem;
        let Sizes { heads, kv_heads, queries, head_dim, width, .. } = sizes;
        let Scratch { query, gradient, output, p, ds, d_query } = scratch;
        let rows = visible.len();
        let mut d = [0.0_f32; QUERY_TILE];
        for (r, d) in d.iter_mut().enumerate().take(rows) {
            let at = [batch, head, first + r];
            let row = r * width..r * width + head_dim;
            self.query.read(at, scores.scale, &mut query[row.clone()]);
            self.gradient.read(at, 1.0, &mut gradient[row.clone()]);
            self.output.read(at, 1.0, &mut output[row.clone()]);
            *d = dot(&gradient[row.clone()], &output[row]);
        }
        d_query.fill(0.0);
        let log_sum_exp = &self.log_sum_exp[(batch * heads + head) * queries + first..][..rows];
        let kv_head = batch * kv_heads + head / sizes.group();
        let seen = Span::around(visible);
        for tile in seen.tiles() {
            let index = kv_head * sizes.key_tiles() + tile;
            let transposed = index * KEY_TILE * head_dim..(index + 1) * KEY_TILE * head_dim;
            let columns = seen.within(tile).end.next_multiple_of(COLUMN_STEP);
            multiply_tile::<false>(
                [rows, columns, head_dim],
                Strided { values: query, row: width, column: 1 },
                &self.keys_transposed[transposed.clone()],
                KEY_TILE,
                p,
                KEY_TILE,
            );
            multiply_tile::<false>(
                [rows, columns, head_dim],
                Strided { values: gradient, row: width, column: 1 },
                &self.values_transposed[transposed],
                KEY_TILE,
                ds,
                KEY_TILE,
            );
            for (r, span) in visible.iter().enumerate() {
                let p = &mut p[r * KEY_TILE..][..columns];
                let ds = &mut ds[r * KEY_TILE..][..columns];
                let seen = span.within(tile);
                if seen.is_empty() {
                    p.fill(0.0);
                    ds.fill(0.0);
                    continue;
                }
                cap(&mut p[seen.clone()], scores);
                if let Some(cap) = scores.softcap {
                    // Before the scores are gone: the cap's derivative, and D, go in at once.
                    for (ds, s) in ds[seen.clone()].iter_mut().zip(&p[seen.clone()]) {
                        let bend = s / cap;
                        *ds = (*ds - d[r]) * (1.0 - bend * bend);
                    }
                    exponentials(p, seen, log_sum_exp[r]);
                    for (ds, p) in ds.iter_mut().zip(p.iter()) {
                        *ds *= p;
                    }
                } else {
                    exponentials(p, seen, log_sum_exp[r]);
                    for (ds, p) in ds.iter_mut().zip(p.iter()) {
                        *ds = p * (*ds - d[r]);
                    }
                }
            }
            let local = (tile - part.tiles.start) * KEY_TILE * width;
            multiply_tile::<true>(
                [columns, width, rows],
                Strided { values: p, row: 1, column: KEY_TILE },
                gradient,
                width,
                &mut part.value[local..],
                width,
            );
            multiply_tile::<true>(
                [columns, width, rows],
                Strided { values: ds, row: 1, column: KEY_TILE },
                query,
                width,
                &mut part.key[local..],
                width,
            );
            multiply_tile::<true>(
                [rows, width, columns],
                Strided { values: ds, row: KEY_TILE, column: 1 },
                &self.keys[index * KEY_TILE * width..][..KEY_TILE * width],
                width,
                d_query,
                width,
            );
        }
    }
}
