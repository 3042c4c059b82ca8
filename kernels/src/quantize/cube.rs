//! Block quantisation on CubeCL devices: a cube a block, which goes over its values twice, for the scale
//! and for the numbers.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{INVERSE_127, NUMBERS_A_WORD};
use crate::cube::{cube_max, cubes, element, elementwise, empty, into_contiguous};

/// Units of a cube: a block of 256 elements has so many words.
const UNITS: usize = 64;

pub(super) fn quantize(x: CubeTensor, block: usize) -> (CubeTensor, CubeTensor) {
    let x = into_contiguous(x);
    let length = x.shape().num_elements();
    let (words, scales) = outputs(&x, length.div_ceil(block), block);
    if length > 0 {
        let dtype = element(&x);
        kernel::quantize::launch(
            &words.client,
            cubes(length.div_ceil(block)),
            CubeDim::new_1d(UNITS as u32),
            x.into_tensor_arg(),
            words.clone().into_tensor_arg(),
            scales.clone().into_tensor_arg(),
            length,
            block,
            dtype,
        );
    }
    (words, scales)
}

pub(super) fn dequantize(
    words: CubeTensor,
    scales: CubeTensor,
    block: usize,
    length: usize,
    dtype: DType,
) -> CubeTensor {
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let output = empty(&scales, [length], dtype);
    if length > 0 {
        let (count, units) = elementwise(length);
        let dtype = element(&output);
        kernel::dequantize::launch(
            &output.client,
            count,
            units,
            words.into_tensor_arg(),
            scales.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            block,
            dtype,
        );
    }
    output
}

pub(super) fn reduce(
    words: CubeTensor,
    scales: CubeTensor,
    block: usize,
    scale: f32,
) -> (CubeTensor, CubeTensor) {
    let (words, scales) = (into_contiguous(words), into_contiguous(scales));
    let [rows, blocks] = scales.shape().dims();
    let (sum_words, sum_scales) = outputs(&scales, blocks, block);
    if blocks > 0 {
        kernel::reduce::launch(
            &sum_words.client,
            cubes(blocks),
            CubeDim::new_1d(UNITS as u32),
            words.into_tensor_arg(),
            scales.into_tensor_arg(),
            sum_words.clone().into_tensor_arg(),
            sum_scales.clone().into_tensor_arg(),
            rows,
            block,
            scale,
        );
    }
    (sum_words, sum_scales)
}

fn outputs(like: &CubeTensor, blocks: usize, block: usize) -> (CubeTensor, CubeTensor) {
    let words = empty(like, [blocks * block / NUMBERS_A_WORD], DType::I32);
    (words, empty(like, [blocks], DType::F32))
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// The bits of a number's magnitude: in the order of the numbers, infinity and NaN after them.
    #[cube]
    fn magnitude(value: f32) -> u32 {
        u32::reinterpret(value) & 0x7FFF_FFFF
    }

    /// The scale of a block whose largest magnitude has these bits.
    #[cube]
    fn scale_of(largest: u32) -> f32 {
        let mut scale = f32::reinterpret(largest) * INVERSE_127;
        if scale < f32::MIN_POSITIVE {
            scale = 0.0;
        }
        if largest >= 0x7F80_0000 {
            // Infinity and NaN with the bit of a quiet NaN. A constant would be refused by WGSL.
            scale = f32::reinterpret(largest | 0x7FC0_0000);
        }
        scale
    }

    /// `1 / scale`, or 0 for a block whose numbers are zeros.
    #[cube]
    fn inverse_of(largest: u32, scale: f32) -> f32 {
        let mut inverse = 0.0_f32;
        if scale > 0.0 && largest < 0x7F80_0000 {
            inverse = 1.0 / scale;
        }
        inverse
    }

    /// The number of a value, as byte `lane` of a word.
    #[cube]
    fn number(value: f32, inverse: f32, lane: u32) -> i32 {
        let mut byte = 0_i32;
        if inverse > 0.0 {
            byte = (i32::cast_from((value * inverse).round()) & 0xFF) << (8 * lane as i32);
        }
        byte
    }

    /// Byte `lane` of a word, with its sign.
    #[cube]
    fn signed_byte(word: i32, lane: u32) -> f32 {
        f32::cast_from((word << (24 - 8 * lane as i32)) >> 24)
    }

    #[cube(launch)]
    pub(super) fn quantize<F: Float>(
        x: &Tensor<F>,
        words: &mut Tensor<i32>,
        scales: &mut Tensor<f32>,
        length: usize,
        block: usize,
        #[define(F)] _type: ElemType,
    ) {
        let mut scratch = Shared::<[u32]>::new_slice(UNITS);
        if CUBE_POS >= scales.len() {
            terminate!();
        }
        let start = CUBE_POS * block;
        let end = clamp_max(start + block, length);
        let mut largest = 0_u32;
        let mut i = start + UNIT_POS as usize;
        while i < end {
            largest = max(largest, magnitude(f32::cast_from(x[i])));
            i += CUBE_DIM as usize;
        }
        let largest = cube_max(largest, &mut scratch);
        let scale = scale_of(largest);
        let inverse = inverse_of(largest, scale);
        let mut word = (start / 4) + UNIT_POS as usize;
        while word < (start + block) / 4 {
            let mut packed = 0_i32;
            for lane in 0..4_u32 {
                let i = word * 4 + lane as usize;
                if i < end {
                    packed |= number(f32::cast_from(x[i]), inverse, lane);
                }
            }
            words[word] = packed;
            word += CUBE_DIM as usize;
        }
        if UNIT_POS == 0 {
            scales[CUBE_POS] = scale;
        }
    }

    #[cube(launch)]
    pub(super) fn dequantize<F: Float>(
        words: &Tensor<i32>,
        scales: &Tensor<f32>,
        output: &mut Tensor<F>,
        block: usize,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= output.len() {
            terminate!();
        }
        let number = signed_byte(words[ABSOLUTE_POS / 4], ABSOLUTE_POS as u32 % 4);
        output[ABSOLUTE_POS] = F::cast_from(number * scales[ABSOLUTE_POS / block]);
    }

    /// The scaled sum over the rows of byte `lane` of a word. A row has `width` words.
    #[cube]
    fn sum_rows(
        words: &Tensor<i32>,
        scales: &Tensor<f32>,
        rows: usize,
        word: usize,
        lane: u32,
        scale: f32,
    ) -> f32 {
        let blocks = scales.len() / rows;
        let width = words.len() / rows;
        let mut sum = 0.0_f32;
        for row in 0..rows {
            let number = signed_byte(words[row * width + word], lane);
            sum += number * scales[row * blocks + CUBE_POS];
        }
        sum * scale
    }

    #[cube(launch)]
    pub(super) fn reduce(
        words: &Tensor<i32>,
        scales: &Tensor<f32>,
        sum_words: &mut Tensor<i32>,
        sum_scales: &mut Tensor<f32>,
        rows: usize,
        block: usize,
        scale: f32,
    ) {
        let mut scratch = Shared::<[u32]>::new_slice(UNITS);
        if CUBE_POS >= sum_scales.len() {
            terminate!();
        }
        let first = CUBE_POS * block / 4 + UNIT_POS as usize;
        let end = (CUBE_POS + 1) * block / 4;
        let mut largest = 0_u32;
        let mut word = first;
        while word < end {
            for lane in 0..4_u32 {
                let sum = sum_rows(words, scales, rows, word, lane, scale);
                largest = max(largest, magnitude(sum));
            }
            word += CUBE_DIM as usize;
        }
        let largest = cube_max(largest, &mut scratch);
        let block_scale = scale_of(largest);
        let inverse = inverse_of(largest, block_scale);
        let mut word = first;
        while word < end {
            let mut packed = 0_i32;
            for lane in 0..4_u32 {
                let sum = sum_rows(words, scales, rows, word, lane, scale);
                packed |= number(sum, inverse, lane);
            }
            sum_words[word] = packed;
            word += CUBE_DIM as usize;
        }
        if UNIT_POS == 0 {
            sum_scales[CUBE_POS] = block_scale;
        }
    }
}
