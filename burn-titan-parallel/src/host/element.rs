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

/// Reduces buffers of equal length into `output`, in the order of `inputs`: the order of ranks. Half
/// precision is summed in f32 and rounded once, so the result is the same however the elements are
/// split over ranks.
///
/// # Panics
/// If the lengths differ or are not whole elements.
pub fn reduce(element: Element, reduction: Reduction, inputs: &[&[u8]], output: &mut [u8]) {
    assert!(inputs.iter().all(|input| input.len() == output.len()), "buffers of one length");
    assert!(output.len().is_multiple_of(element.size()), "whole elements");
    match element {
        Element::F32 => {
            floats::<4>(reduction, inputs, output, f32::from_ne_bytes, f32::to_ne_bytes)
        }
        Element::F16 => floats::<2>(
            reduction,
            inputs,
            output,
            |b| f16::from_ne_bytes(b).to_f32(),
            |x| f16::from_f32(x).to_ne_bytes(),
        ),
        Element::BF16 => floats::<2>(
            reduction,
            inputs,
            output,
            |b| bf16::from_ne_bytes(b).to_f32(),
            |x| bf16::from_f32(x).to_ne_bytes(),
        ),
        Element::I32 => integers::<4, _>(reduction, inputs, output, i32::from_ne_bytes, |x| {
            (x as i32).to_ne_bytes()
        }),
        Element::U8 => integers::<1, _>(reduction, inputs, output, u8::from_ne_bytes, |x| {
            (x as u8).to_ne_bytes()
        }),
    }
}

/// Elements summed at once: small enough for the first-level cache.
const BLOCK: usize = 2048;

fn floats<const N: usize>(
    reduction: Reduction,
    inputs: &[&[u8]],
    output: &mut [u8],
    read: impl Fn([u8; N]) -> f32,
    write: impl Fn(f32) -> [u8; N],
) {
    let mut sums = [0.0_f32; BLOCK];
    for (block, output) in output.chunks_mut(BLOCK * N).enumerate() {
        let sums = &mut sums[..output.len() / N];
        for (rank, input) in inputs.iter().enumerate() {
            let input = input[block * BLOCK * N..][..output.len()].as_chunks::<N>().0;
            let pairs = sums.iter_mut().zip(input);
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
        let factor = if reduction == Reduction::Average { inputs.len() as f32 } else { 1.0 };
        for (out, sum) in output.as_chunks_mut::<N>().0.iter_mut().zip(sums) {
            *out = write(*sum / factor);
        }
    }
}

fn integers<const N: usize, I: Into<i64>>(
    reduction: Reduction,
    inputs: &[&[u8]],
    output: &mut [u8],
    read: impl Fn([u8; N]) -> I,
    write: impl Fn(i64) -> [u8; N],
) {
    for (i, out) in output.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let values = inputs.iter().map(|input| read(input.as_chunks::<N>().0[i]).into());
        *out = write(match reduction {
            Reduction::Sum => values.sum(),
            Reduction::Average => values.sum::<i64>() / inputs.len() as i64,
            Reduction::Max => values.max().unwrap_or(0),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<const N: usize, T: Copy>(values: &[T], to: fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|x| to(*x)).collect()
    }

    #[test]
    fn floats_are_reduced_in_rank_order() {
        let ranks: Vec<Vec<f32>> = (0..5)
            .map(|r| (0..5003).map(|i| ((i * 7 + r * 31) as f32).sin() * 1e3).collect())
            .collect();
        let bytes: Vec<Vec<u8>> = ranks.iter().map(|x| bytes_of(x, f32::to_ne_bytes)).collect();
        let inputs: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let mut output = vec![0; inputs[0].len()];
        for reduction in Reduction::ALL {
            reduce(Element::F32, reduction, &inputs, &mut output);
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
        let mut output = vec![0; 4];
        // 256 + 1 + 1 = 258 is a bf16 number; 256 + 1 rounded would have lost both ones.
        reduce(Element::BF16, Reduction::Sum, &[&small, &ones, &ones], &mut output);
        assert_eq!(
            output,
            bytes_of(&[bf16::from_f32(258.0), bf16::from_f32(3.0)], bf16::to_ne_bytes)
        );
        let mut output = [0];
        reduce(Element::U8, Reduction::Sum, &[&[200], &[100]], &mut output);
        assert_eq!(output, [44]);
        reduce(Element::U8, Reduction::Average, &[&[200], &[101]], &mut output);
        assert_eq!(output, [150]);
        let mut output = [0; 4];
        let (a, b) = ((-5_i32).to_ne_bytes(), 2_i32.to_ne_bytes());
        reduce(Element::I32, Reduction::Max, &[&a, &b], &mut output);
        assert_eq!(i32::from_ne_bytes(output), 2);
        reduce(Element::I32, Reduction::Average, &[&a, &b], &mut output);
        assert_eq!(i32::from_ne_bytes(output), -1);
    }

    #[test]
    fn nan_is_the_largest() {
        let a = bytes_of(&[f32::NAN, 1.0, 2.0], f32::to_ne_bytes);
        let b = bytes_of(&[1.0, f32::NAN, 1.0], f32::to_ne_bytes);
        let mut output = vec![0; 12];
        reduce(Element::F32, Reduction::Max, &[&a, &b], &mut output);
        let got: Vec<f32> =
            output.as_chunks::<4>().0.iter().map(|x| f32::from_ne_bytes(*x)).collect();
        assert!(got[0].is_nan() && got[1].is_nan() && got[2] == 2.0);
    }
}
