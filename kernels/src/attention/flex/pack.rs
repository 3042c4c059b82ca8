//! Reading heads of any strides and dtype into contiguous f32 tiles.

use burn::tensor::{DType, bf16, f16};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{KEY_TILE, Sizes};

/// The rows `[head_dim]` of a `[batch, heads, seq, head_dim]` tensor.
pub(super) struct Rows<'a> {
    values: Values<'a>,
    offset: isize,
    strides: [isize; 4],
}

enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    F64(&'a [f64]),
}

impl<'a> Rows<'a> {
    pub(super) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let strides = layout.strides();
        let values = match tensor.dtype() {
            DType::F32 => Values::F32(tensor.storage()),
            DType::F16 => Values::F16(tensor.storage()),
            DType::BF16 => Values::BF16(tensor.storage()),
            DType::F64 => Values::F64(tensor.storage()),
            other => unreachable!("a float tensor has the dtype {other:?}"),
        };
        Self {
            values,
            offset: layout.start_offset() as isize,
            strides: [strides[0], strides[1], strides[2], strides[3]],
        }
    }

    /// Writes the row at `[batch, head, position]` into `out`, times `scale`.
    #[inline(always)]
    pub(super) fn read(&self, at: [usize; 3], scale: f32, out: &mut [f32]) {
        let along = |i: usize| at[i] as isize * self.strides[i];
        let start = self.offset + along(0) + along(1) + along(2);
        let step = self.strides[3];
        match self.values {
            Values::F32(values) if step == 1 => {
                let row = &values[start as usize..][..out.len()];
                for (out, x) in out.iter_mut().zip(row) {
                    *out = x * scale;
                }
            }
            Values::F32(values) => gather(values, start, step, out, |x| x * scale),
            Values::F16(values) => gather(values, start, step, out, |x| x.to_f32() * scale),
            Values::BF16(values) => gather(values, start, step, out, |x| x.to_f32() * scale),
            Values::F64(values) => gather(values, start, step, out, |x| x as f32 * scale),
        }
    }
}

#[inline(always)]
fn gather<E: Copy>(
    values: &[E],
    start: isize,
    step: isize,
    out: &mut [f32],
    convert: impl Fn(E) -> f32,
) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = convert(values[(start + i as isize * step) as usize]);
    }
}

/// All heads of keys or values: `[batch, kv_heads, tiles, KEY_TILE, width]`, padded with zeros.
pub(super) fn tiles(tensor: &FlexTensor, sizes: Sizes) -> Vec<f32> {
    let rows = Rows::new(tensor);
    pack(sizes, KEY_TILE * sizes.width, |[batch, head], keys, tile| {
        for (key, row) in keys.zip(tile.chunks_exact_mut(sizes.width)) {
            rows.read([batch, head, key], 1.0, &mut row[..sizes.head_dim]);
        }
    })
}

/// The same, each tile transposed: `[batch, kv_heads, tiles, head_dim, KEY_TILE]`.
pub(super) fn transposed_tiles(tensor: &FlexTensor, sizes: Sizes) -> Vec<f32> {
    let rows = Rows::new(tensor);
    pack(sizes, KEY_TILE * sizes.head_dim, |[batch, head], keys, tile| {
        let mut row = vec![0.0; sizes.head_dim];
        for (column, key) in keys.enumerate() {
            rows.read([batch, head, key], 1.0, &mut row);
            for (x, out) in row.iter().zip(tile[column..].iter_mut().step_by(KEY_TILE)) {
                *out = *x;
            }
        }
    })
}

/// Fills each tile of `size` values of each key head, in parallel.
fn pack(
    sizes: Sizes,
    size: usize,
    fill: impl Fn([usize; 2], std::ops::Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let tiles = sizes.key_tiles();
    let mut packed = vec![0.0; sizes.batch * sizes.kv_heads * tiles * size];
    packed.par_chunks_exact_mut(size.max(1)).enumerate().for_each(|(i, tile)| {
        let head = i / tiles;
        let first = i % tiles * KEY_TILE;
        let keys = first..sizes.keys.min(first + KEY_TILE);
        fill([head / sizes.kv_heads, head % sizes.kv_heads], keys, tile);
    });
    packed
}
