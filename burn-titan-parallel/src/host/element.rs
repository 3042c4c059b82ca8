//! The elements that are exchanged, and sums of them in rank order.

use half::{bf16, f16};

/// The type of the elements of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Element {
    /// 32-bit float.
    F32 = 1,
    /// IEEE half.
    F16 = 2,
    /// bfloat16.
    BF16 = 3,
    /// 32-bit integer.
    I32 = 4,
    /// Byte.
    U8 = 5,
}

/// How the ranks' elements become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reduction {
    /// Their sum. Integers wrap.
    Sum = 1,
    /// Their sum over the number of ranks. Integers round towards zero.
    Average = 2,
    /// The largest; NaN, where any is NaN.
    Max = 3,
}

impl Element {
    /// Every type.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::I32, Self::U8];

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }

    /// The type with this code in a message.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|element| *element as u8 == code)
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I32 => "i32",
            Self::U8 => "u8",
        })
    }
}

impl Reduction {
    /// Every reduction.
    pub const ALL: [Self; 3] = [Self::Sum, Self::Average, Self::Max];

    /// The reduction with this code in a message.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reduction| *reduction as u8 == code)
    }
}

impl std::fmt::Display for Reduction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sum => "sum",
            Self::Average => "average",
            Self::Max => "max",
        })
    }
}

/// Reduces buffers of equal length in the order of ranks: `buffer` is that of rank `place` and becomes the
/// result, `others` are the other ranks', in their order. Half precision is summed in f32 and rounded
/// once, so the result is the same however the elements are split over ranks.
///
/// # Panics
/// If the lengths differ or are not whole elements, or there is no such place.
pub fn reduce(
    element: Element,
    reduction: Reduction,
    others: &[&[u8]],
    place: usize,
    buffer: &mut [u8],
) {
    assert!(others.iter().all(|input| input.len() == buffer.len()), "buffers of one length");
    assert!(buffer.len().is_multiple_of(element.size()), "whole elements");
    let inputs = Inputs { before: &others[..place], after: &others[place..] };
    match element {
        Element::F32 => {
            floats::<4>(reduction, inputs, buffer, f32::from_ne_bytes, f32::to_ne_bytes)
        }
        Element::F16 => floats::<2>(
            reduction,
            inputs,
            buffer,
            |b| f16::from_ne_bytes(b).to_f32(),
            |x| f16::from_f32(x).to_ne_bytes(),
        ),
        Element::BF16 => floats::<2>(
            reduction,
            inputs,
            buffer,
            |b| bf16::from_ne_bytes(b).to_f32(),
            |x| bf16::from_f32(x).to_ne_bytes(),
        ),
        Element::I32 => integers::<4, _>(reduction, inputs, buffer, i32::from_ne_bytes, |x| {
            (x as i32).to_ne_bytes()
        }),
        Element::U8 => integers::<1, _>(reduction, inputs, buffer, u8::from_ne_bytes, |x| {
            (x as u8).to_ne_bytes()
        }),
    }
}

/// The buffers of the ranks before and after the one that becomes the result.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    before: &'a [&'a [u8]],
    after: &'a [&'a [u8]],
}

impl Inputs<'_> {
    /// How many buffers, with the own one.
    fn ranks(&self) -> usize {
        self.before.len() + 1 + self.after.len()
    }
}

/// Elements summed at once: small enough for the first-level cache.
const BLOCK: usize = 2048;

fn floats<const N: usize>(
    reduction: Reduction,
    inputs: Inputs,
    buffer: &mut [u8],
    read: impl Fn([u8; N]) -> f32,
    write: impl Fn(f32) -> [u8; N],
) {
    let mut sums = [0.0_f32; BLOCK];
    for (block, own) in buffer.chunks_mut(BLOCK * N).enumerate() {
        let sums = &mut sums[..own.len() / N];
        let range = block * BLOCK * N..block * BLOCK * N + own.len();
        let before = inputs.before.iter().map(|input| &input[range.clone()]);
        let after = inputs.after.iter().map(|input| &input[range.clone()]);
        for (rank, input) in before.chain(std::iter::once(&*own)).chain(after).enumerate() {
            let pairs = sums.iter_mut().zip(input.as_chunks::<N>().0);
            match (rank, reduction) {
                (0, _) => pairs.for_each(|(sum, x)| *sum = read(*x)),
                (_, Reduction::Max) => pairs.for_each(|(sum, x)| {
                    let x = read(*x);
                    if x > *sum || x.is_nan() {
                        *sum = x;
                    }
                }),
                _ => pairs.for_each(|(sum, x)| *sum += read(*x)),
            }
        }
        if reduction == Reduction::Average {
            let ranks = inputs.ranks() as f32;
            sums.iter_mut().for_each(|sum| *sum /= ranks);
        }
        for (out, sum) in own.as_chunks_mut::<N>().0.iter_mut().zip(sums) {
            *out = write(*sum);
        }
    }
}

fn integers<const N: usize, I: Into<i64>>(
    reduction: Reduction,
    inputs: Inputs,
    buffer: &mut [u8],
    read: impl Fn([u8; N]) -> I,
    write: impl Fn(i64) -> [u8; N],
) {
    let others = || inputs.before.iter().chain(inputs.after);
    for (i, out) in buffer.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let own: i64 = read(*out).into();
        let values = others().map(|input| read(input.as_chunks::<N>().0[i]).into());
        *out = write(match reduction {
            Reduction::Sum => own + values.sum::<i64>(),
            Reduction::Average => (own + values.sum::<i64>()) / inputs.ranks() as i64,
            Reduction::Max => values.fold(own, i64::max),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<const N: usize, T: Copy>(values: &[T], to: fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|x| to(*x)).collect()
    }

    /// The reduction of all inputs, whichever of them becomes the result.
    fn reduced(element: Element, reduction: Reduction, inputs: &[&[u8]]) -> Vec<u8> {
        let results = (0..inputs.len()).map(|place| {
            let mut others = inputs.to_vec();
            let mut buffer = others.remove(place).to_vec();
            reduce(element, reduction, &others, place, &mut buffer);
            buffer
        });
        let results: Vec<Vec<u8>> = results.collect();
        assert!(results.iter().all(|result| *result == results[0]));
        results[0].clone()
    }

    #[test]
    fn floats_are_reduced_in_rank_order() {
        let ranks: Vec<Vec<f32>> = (0..5)
            .map(|r| (0..5003).map(|i| ((i * 7 + r * 31) as f32).sin() * 1e3).collect())
            .collect();
        let bytes: Vec<Vec<u8>> = ranks.iter().map(|x| bytes_of(x, f32::to_ne_bytes)).collect();
        let inputs: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        for reduction in Reduction::ALL {
            let output = reduced(Element::F32, reduction, &inputs);
            for (i, got) in output.as_chunks::<4>().0.iter().enumerate() {
                let column = ranks.iter().map(|rank| rank[i]);
                let want = match reduction {
                    Reduction::Sum => column.reduce(|a, b| a + b).unwrap(),
                    Reduction::Average => column.reduce(|a, b| a + b).unwrap() / 5.0,
                    Reduction::Max => column.fold(f32::NEG_INFINITY, f32::max),
                };
                assert_eq!(f32::from_ne_bytes(*got).to_bits(), want.to_bits());
            }
        }
    }

    #[test]
    fn halves_round_once_and_integers_wrap() {
        let small = bytes_of(&[bf16::from_f32(256.0), bf16::ONE], bf16::to_ne_bytes);
        let ones = bytes_of(&[bf16::ONE, bf16::ONE], bf16::to_ne_bytes);
        // 256 + 1 + 1 = 258 is a bf16 number; 256 + 1 rounded would have lost both ones.
        let output = reduced(Element::BF16, Reduction::Sum, &[&small, &ones, &ones]);
        assert_eq!(
            output,
            bytes_of(&[bf16::from_f32(258.0), bf16::from_f32(3.0)], bf16::to_ne_bytes)
        );
        let output = reduced(Element::U8, Reduction::Sum, &[&[200], &[100]]);
        assert_eq!(output, [44]);
        let output = reduced(Element::U8, Reduction::Average, &[&[200], &[101]]);
        assert_eq!(output, [150]);
        let (a, b) = ((-5_i32).to_ne_bytes(), 2_i32.to_ne_bytes());
        let output = reduced(Element::I32, Reduction::Max, &[&a, &b]);
        assert_eq!(i32::from_ne_bytes(output.try_into().unwrap()), 2);
        let output = reduced(Element::I32, Reduction::Average, &[&a, &b]);
        assert_eq!(i32::from_ne_bytes(output.try_into().unwrap()), -1);
    }

    #[test]
    fn nan_is_the_largest() {
        let a = bytes_of(&[f32::NAN, 1.0, 2.0], f32::to_ne_bytes);
        let b = bytes_of(&[1.0, f32::NAN, 1.0], f32::to_ne_bytes);
        let output = reduced(Element::F32, Reduction::Max, &[&a, &b]);
        let got: Vec<f32> =
            output.as_chunks::<4>().0.iter().map(|x| f32::from_ne_bytes(*x)).collect();
        assert!(got[0].is_nan() && got[1].is_nan() && got[2] == 2.0);
    }
}
