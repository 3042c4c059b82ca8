//! Quantisation to 8-bit integers by blocks, for collectives that send a quarter of the bytes: the block
//! quantisation of ZeRO++ (Wang et al., 2023, section 3.1), symmetric.
//!
//! A block of values `x` has the scale `s = max |x| / 127`, and `x` becomes the whole number `q` next to
//! `x / s`, ties to the even one. `q s` is off by at most `s / 2` (and f32 rounding: a relative
//! 2^-14 of that). Two kinds of block have no such scale:
//! - where `s` would be below the least normal f32, so that devices which flush such numbers agree, the
//!   scale is 0 and so are the numbers;
//! - where a value is NaN or infinite, the scale is NaN, and so is all that is made of the block.
//!
//! Everything but `1 / s` and the sums of [`reduce_quantized`] is rounded the same on all devices. WGSL
//! leaves the last bits of a division to the device, and any GPU compiler may fuse the products and sums,
//! so that a number may be off by one where the exact value is next to a tie.

#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Int, IntDType, Tensor};

/// Numbers in a word of [`Quantized::values`].
const NUMBERS_A_WORD: usize = 4;

/// Scale of a block whose largest magnitude is 1.
const INVERSE_127: f32 = 1.0 / 127.0;

/// A flat tensor in 8 bits an element.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// `[blocks * block / 4]` in i32: four numbers a word, the first in the lowest byte. The numbers past
    /// the end of the last block are zeros.
    pub values: Tensor<1, Int>,
    /// `[blocks]` in f32.
    pub scales: Tensor<1>,
    /// Elements of the tensor.
    pub length: usize,
    /// Elements of a block.
    pub block: usize,
}

/// The dispatched forms of [`quantize`], [`dequantize`] and [`reduce_quantized`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait QuantizeOps: Backend {
    /// The words and the scales of `x`, `[length]`.
    #[fusion(meta = |x, block| quantized_specs(x.shape[0].div_ceil(*block), *block))]
    fn fused_quantize(x: FloatTensor<Self>, block: usize) -> (IntTensor<Self>, FloatTensor<Self>);

    /// `[length]` in `dtype`.
    #[fusion(dtype = *dtype, shape = [*length].into())]
    fn fused_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        block: usize,
        length: usize,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// The words and the scales of the sum over `words`, `[n, words]`, and `scales`, `[n, blocks]`.
    #[fusion(meta = |_, scales, block, _| quantized_specs(scales.shape[1], *block))]
    fn fused_reduce_quantized(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        block: usize,
        scale: f32,
    ) -> (IntTensor<Self>, FloatTensor<Self>);
}

#[cfg(feature = "tuned")]
fn quantized_specs(
    blocks: usize,
    block: usize,
) -> (burn::backend::fusion::custom::TensorSpec, burn::backend::fusion::custom::TensorSpec) {
    use burn::backend::fusion::custom::TensorSpec;
    let words = TensorSpec::new([blocks * block / NUMBERS_A_WORD].into(), DType::I32);
    (words, TensorSpec::new([blocks].into(), DType::F32))
}

impl QuantizeOps for Flex {
    fn fused_quantize(x: FloatTensor<Self>, block: usize) -> (IntTensor<Self>, FloatTensor<Self>) {
        flex::quantize(&x, block)
    }

    fn fused_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        block: usize,
        length: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        flex::dequantize(&words, &scales, block, length, dtype)
    }

    fn fused_reduce_quantized(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        block: usize,
        scale: f32,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        flex::reduce(&words, &scales, block, scale)
    }
}

#[cfg(feature = "cube")]
impl QuantizeOps for burn_cubecl::CubeBackend {
    fn fused_quantize(x: FloatTensor<Self>, block: usize) -> (IntTensor<Self>, FloatTensor<Self>) {
        cube::quantize(x, block)
    }

    fn fused_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        block: usize,
        length: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        cube::dequantize(words, scales, block, length, dtype)
    }

    fn fused_reduce_quantized(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        block: usize,
        scale: f32,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        cube::reduce(words, scales, block, scale)
    }
}

/// Quantises `x`, `[length]` in f32, f16 or bf16 and not tracked, by blocks of `block` elements.
///
/// # Panics
/// If `block` is not a positive multiple of 4.
pub fn quantize(x: Tensor<1>, block: usize) -> Quantized {
    check_block(block);
    let length = x.dims()[0];
    let (words, scales) = <Dispatch as QuantizeOps>::fused_quantize(x.into_dispatch(), block);
    Quantized::new(words, scales, length, block)
}

/// The values of a quantised tensor, `[length]` in `dtype` (f32, f16 or bf16).
pub fn dequantize(quantized: Quantized, dtype: DType) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as QuantizeOps>::fused_dequantize(
        as_i32(quantized.values).into_dispatch(),
        quantized.scales.into_dispatch(),
        quantized.block,
        quantized.length,
        dtype,
    ))
}

/// `scale` times the sum of `n` quantised tensors of one length, quantised again, in one pass: nothing but
/// the blocks at hand is ever in f32. The sums are in f32 and in row order.
///
/// # Shapes
/// - `values`: `[n, words]`, a row the [`Quantized::values`] of one tensor
/// - `scales`: `[n, blocks]`, a row its [`Quantized::scales`]
/// - `length`, `block`: those of the tensors
///
/// # Panics
/// If there is no row, or if the shapes do not belong together.
pub fn reduce_quantized(
    values: Tensor<2, Int>,
    scales: Tensor<2>,
    length: usize,
    block: usize,
    scale: f32,
) -> Quantized {
    check_block(block);
    let blocks = length.div_ceil(block);
    let rows = values.dims()[0];
    assert!(rows > 0, "a sum of quantised tensors has at least one");
    assert_eq!(values.dims(), [rows, blocks * block / NUMBERS_A_WORD], "words of quantised rows");
    assert_eq!(scales.dims(), [rows, blocks], "scales of quantised rows");
    let (words, scales) = <Dispatch as QuantizeOps>::fused_reduce_quantized(
        as_i32(values).into_dispatch(),
        scales.into_dispatch(),
        block,
        scale,
    );
    Quantized::new(words, scales, length, block)
}

impl Quantized {
    fn new(
        words: IntTensor<Dispatch>,
        scales: FloatTensor<Dispatch>,
        length: usize,
        block: usize,
    ) -> Self {
        let (values, scales) = (Tensor::from_dispatch(words), Tensor::from_dispatch(scales));
        Self { values, scales, length, block }
    }
}

fn check_block(block: usize) {
    assert!(
        block > 0 && block.is_multiple_of(NUMBERS_A_WORD),
        "a block has a positive multiple of {NUMBERS_A_WORD} elements, not {block}"
    );
}

fn as_i32<const D: usize>(words: Tensor<D, Int>) -> Tensor<D, Int> {
    if words.dtype() == DType::I32 { words } else { words.cast(IntDType::I32) }
}
