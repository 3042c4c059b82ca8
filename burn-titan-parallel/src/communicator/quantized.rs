//! Exchanges of int8 blocks in place of floats: a quarter of the bytes (ZeRO++: Wang et al., 2023).
//!
//! Each block of a tensor travels as int8 numbers and one f32 scale, its largest magnitude over 127; an
//! element is off by at most half of the scale of its block, once for each rank whose number goes into it.
//! Sums are taken in f32, in the order of ranks, of what the ranks have sent.

use burn::tensor::{DType, Tensor};
use burn_titan_kernels::quantize::{Quantized, dequantize, quantize};
use burn_titan_kernels::reduce::reduce_chunks;

use super::{Buffer, Communicator, Work};

/// [`Communicator::all_gather`] of blocks of `block` elements (a positive multiple of 4). The result is in the
/// dtype of the shard; every rank, the sender too, gets the rounded numbers.
pub fn all_gather_quantized(
    communicator: &dyn Communicator,
    shard: Tensor<1>,
    lengths: &[usize],
    block: usize,
) -> Work<Tensor<1>> {
    let dtype = shard.dtype();
    let blocks: Vec<usize> = lengths.iter().map(|length| length.div_ceil(block)).collect();
    let words: Vec<usize> = blocks.iter().map(|blocks| blocks * block / WORD).collect();
    let packed = quantize(shard, block);
    let values = communicator.all_gather(packed.values.into(), &words);
    let scales = communicator.all_gather(packed.scales.into(), &blocks);
    let lengths = lengths.to_vec();
    Work::pending(move || {
        let (values, scales) = (values.wait()?.int(), scales.wait()?.float());
        let (mut word, mut first) = (0, 0);
        let parts =
            lengths.iter().zip(words.iter().zip(&blocks)).map(|(length, (words, blocks))| {
                let part = Quantized {
                    values: values.clone().slice(word..word + words),
                    scales: scales.clone().slice(first..first + blocks),
                    length: *length,
                    block,
                };
                (word, first) = (word + words, first + blocks);
                dequantize(part, dtype)
            });
        Ok(Tensor::cat(parts.collect(), 0))
    })
}

/// [`Communicator::reduce_scatter`] of the sum, sent as blocks of `block` elements (a positive multiple of 4).
/// The result is in f32.
pub fn reduce_scatter_quantized(
    communicator: &dyn Communicator,
    whole: Tensor<1>,
    lengths: &[usize],
    block: usize,
) -> Work<Tensor<1>> {
    let (rank, size) = (communicator.rank(), communicator.size());
    let mut start = 0;
    let parts: Vec<Quantized> = lengths
        .iter()
        .map(|length| {
            start += length;
            quantize(whole.clone().slice(start - length..start), block)
        })
        .collect();
    let blocks: Vec<usize> = lengths.iter().map(|length| length.div_ceil(block)).collect();
    let words: Vec<usize> = blocks.iter().map(|blocks| blocks * block / WORD).collect();
    let (values, scales): (Vec<_>, Vec<_>) =
        parts.into_iter().map(|part| (part.values, part.scales)).unzip();
    let exchange = |x: Buffer, lengths: &[usize]| {
        communicator.all_to_all(x, lengths, &vec![lengths[rank]; size])
    };
    let values = exchange(Tensor::cat(values, 0).into(), &words);
    let scales = exchange(Tensor::cat(scales, 0).into(), &blocks);
    let (length, padded) = (lengths[rank], blocks[rank] * block);
    Work::pending(move || {
        let (values, scales) = (values.wait()?.int(), scales.wait()?.float());
        if length == 0 {
            // To Burn, a 0 in a new shape stands for the old dim.
            return Ok(scales);
        }
        let received = Quantized { values, scales, length: size * padded, block };
        let chunks = dequantize(received, DType::F32).reshape([size, padded]);
        Ok(reduce_chunks(chunks, 1.0, DType::F32).slice(0..length))
    })
}

/// Numbers in a word of [`Quantized::values`].
const WORD: usize = 4;
