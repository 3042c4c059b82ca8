//! Block quantisation on the CPU: a task a run of blocks; the block at hand is in f32, in the cache.

use burn::backend::TensorMetadata;
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::{INVERSE_127, NUMBERS_A_WORD};
use crate::flex::{Values, convert, float_tensor, simd_fn, values_mut, with_number, zeros};

/// Least elements of a task.
const RUN: usize = 16 * 1024;

pub(super) fn quantize(x: &FlexTensor, block: usize) -> (FlexTensor, FlexTensor) {
    let length = x.shape().num_elements();
    with_number!(x.dtype(), E => {
        let x = Values::<E>::new(x);
        quantize_blocks(length.div_ceil(block), block, |index, values| {
            let start = index * block;
            let end = length.min(start + block);
            convert(&x[start..end], &mut values[..end - start]);
            values[end - start..].fill(0.0);
        })
    })
}

pub(super) fn dequantize(
    words: &FlexTensor,
    scales: &FlexTensor,
    block: usize,
    length: usize,
    dtype: DType,
) -> FlexTensor {
    let (words, scales) = (Values::<i32>::new(words), Values::<f32>::new(scales));
    let words_a_block = block / NUMBERS_A_WORD;
    let mut output = zeros([length].into(), dtype);
    with_number!(dtype, E => {
        let runs = values_mut::<E>(&mut output).par_chunks_mut(blocks_a_run(block) * block);
        runs.enumerate().for_each(|(run, output)| {
            let mut values = vec![0.0; block];
            for (i, output) in output.chunks_mut(block).enumerate() {
                let index = run * blocks_a_run(block) + i;
                values.fill(0.0);
                add_block(&mut values, &words[index * words_a_block..], scales[index]);
                convert(&values[..output.len()], output);
            }
        });
    });
    output
}

pub(super) fn reduce(
    words: &FlexTensor,
    scales: &FlexTensor,
    block: usize,
    scale: f32,
) -> (FlexTensor, FlexTensor) {
    let [rows, blocks] = scales.shape().dims();
    let (words, scales) = (Values::<i32>::new(words), Values::<f32>::new(scales));
    let words_a_block = block / NUMBERS_A_WORD;
    quantize_blocks(blocks, block, |index, sums| {
        sums.fill(0.0);
        for row in 0..rows {
            let at = row * blocks + index;
            add_block(sums, &words[at * words_a_block..], scales[at]);
        }
        sums.iter_mut().for_each(|sum| *sum *= scale);
    })
}

/// The words and the scales of blocks whose values `fill(block, values)` writes.
fn quantize_blocks(
    blocks: usize,
    block: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> (FlexTensor, FlexTensor) {
    let words_a_block = block / NUMBERS_A_WORD;
    let mut words = vec![0_i32; blocks * words_a_block];
    let mut scales = vec![0.0_f32; blocks];
    let run = blocks_a_run(block);
    let runs = words.par_chunks_mut(run * words_a_block).zip(scales.par_chunks_mut(run));
    runs.enumerate().for_each(|(task, (words, scales))| {
        let mut values = vec![0.0; block];
        let outputs = words.chunks_exact_mut(words_a_block).zip(scales);
        for (i, (words, scale)) in outputs.enumerate() {
            fill(task * run + i, &mut values);
            *scale = quantize_block(&values, words);
        }
    });
    let layout = Layout::contiguous([words.len()].into());
    let words = FlexTensor::new(Bytes::from_elems(words), layout, DType::I32);
    (words, float_tensor(scales, Shape::new([blocks]), DType::F32))
}

fn blocks_a_run(block: usize) -> usize {
    (RUN / block).max(1)
}

simd_fn! {
    /// Writes the numbers and returns the scale.
    fn quantize_block(values: &'a [f32], words: &'a mut [i32]) -> f32 {
        // The bits of magnitudes are in the order of the numbers, infinity and NaN after them.
        let largest = values.iter().fold(0, |m, x| (x.to_bits() & 0x7FFF_FFFF).max(m));
        let scale = scale_of(largest);
        if scale.is_normal() {
            let inverse = 1.0 / scale;
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
            for (byte, x) in bytes.iter_mut().zip(values) {
                // The sum rounds to a whole number, ties to even, and holds it in the lowest bits.
                const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
                *byte = (x * inverse + ROUND).to_bits() as u8;
            }
            for word in words {
                *word = i32::from_le(*word);
            }
        } else {
            words.fill(0);
        }
        scale
    }
}

/// The scale of a block whose largest magnitude has these bits.
#[inline(always)]
fn scale_of(largest: u32) -> f32 {
    let magnitude = f32::from_bits(largest);
    let scale = magnitude * INVERSE_127;
    if !magnitude.is_finite() {
        f32::NAN
    } else if scale < f32::MIN_POSITIVE {
        0.0
    } else {
        scale
    }
}

simd_fn! {
    /// Adds the numbers times their scale.
    fn add_block(sums: &'a mut [f32], words: &'a [i32], scale: f32) -> () {
        for (sums, word) in sums.chunks_exact_mut(NUMBERS_A_WORD).zip(words) {
            for (sum, byte) in sums.iter_mut().zip(word.to_le_bytes()) {
                *sum += f32::from(byte as i8) * scale;
            }
        }
    }
}
