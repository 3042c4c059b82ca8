//! What MPI adds: the numbers of a buffer, in types of which MPI's sums and maxima are the ones that
//! [`Communicator`](crate::Communicator) promises.
//!
//! - Halves are added in f32 and rounded once, as elsewhere.
//! - The largest float is found among integers of the same order, of which NaN is the largest: MPI leaves
//!   open what its maximum of NaN is.
//! - Bytes are added in 32 bits: Open MPI's sums of bytes stop at 255 on some processors instead of wrapping.
//! - Averages of integers come from sums in 64 bits.

use burn::tensor::Bytes;
use half::{bf16, f16};

use crate::host::{Element, Memory, Reduction};

/// The type of numbers that MPI sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Bytes.
    U8,
    /// 32-bit integers whose sums wrap.
    U32,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// 32-bit floats.
    F32,
}

impl Type {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::I64 => 8,
        }
    }
}

/// Memory of numbers, aligned for them.
#[derive(Debug)]
pub enum Numbers {
    /// As the elements are, or whatever is not added.
    Bytes(Bytes),
    /// 32 bits each.
    Words(Vec<u32>),
    /// 64 bits each.
    Longs(Vec<i64>),
}

impl Numbers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Bytes(numbers) => numbers.is_empty(),
            Self::Words(numbers) => numbers.is_empty(),
            Self::Longs(numbers) => numbers.is_empty(),
        }
    }

    /// Where they begin.
    pub fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Bytes(numbers) => numbers.as_ptr(),
            Self::Words(numbers) => numbers.as_ptr().cast(),
            Self::Longs(numbers) => numbers.as_ptr().cast(),
        }
    }

    /// Where they begin, to be written.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Self::Bytes(numbers) => numbers.as_mut_ptr(),
            Self::Words(numbers) => numbers.as_mut_ptr().cast(),
            Self::Longs(numbers) => numbers.as_mut_ptr().cast(),
        }
    }
}

/// A reduction of elements, as MPI is asked for it.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    element: Element,
    reduction: Reduction,
}

impl Wire {
    /// How these elements are reduced.
    pub fn new(element: Element, reduction: Reduction) -> Self {
        Self { element, reduction }
    }

    /// What MPI sees.
    pub fn number(self) -> Type {
        match (self.element, self.reduction) {
            (Element::F32 | Element::F16 | Element::BF16, Reduction::Max) => Type::I32,
            (Element::F32 | Element::F16 | Element::BF16, _) => Type::F32,
            (Element::I32, Reduction::Max) => Type::I32,
            (Element::U8, Reduction::Max) => Type::U8,
            (Element::I32 | Element::U8, Reduction::Sum) => Type::U32,
            (Element::I32 | Element::U8, Reduction::Average) => Type::I64,
        }
    }

    /// Whether MPI is to take the maximum; the sum otherwise.
    pub fn takes_max(self) -> bool {
        self.reduction == Reduction::Max
    }

    /// Whether the numbers have the bytes of the elements.
    fn is_plain(self) -> bool {
        match self.element {
            Element::F32 => self.number() == Type::F32,
            Element::I32 => self.number() != Type::I64,
            Element::U8 => self.number() == Type::U8,
            Element::F16 | Element::BF16 => false,
        }
    }

    /// The elements as numbers.
    pub fn widen(self, bytes: Bytes) -> Numbers {
        if self.fits(&bytes) {
            return Numbers::Bytes(bytes);
        }
        let average = self.reduction == Reduction::Average;
        match self.element {
            Element::F32 => words(&bytes, |b| self.word(f32::from_ne_bytes(b))),
            Element::F16 => words(&bytes, |b| self.word(f16::from_ne_bytes(b).to_f32())),
            Element::BF16 => words(&bytes, |b| self.word(bf16::from_ne_bytes(b).to_f32())),
            Element::I32 if average => longs(&bytes, |b| i32::from_ne_bytes(b).into()),
            Element::I32 => words(&bytes, u32::from_ne_bytes),
            Element::U8 if average => longs(&bytes, |[b]| i64::from(b)),
            Element::U8 => words(&bytes, |[b]| b.into()),
        }
    }

    /// Room for the result of so many elements.
    pub fn zeros(self, count: usize) -> Numbers {
        if self.is_plain() {
            return Numbers::Bytes(Bytes::zeroed(count * self.element.size(), self.element));
        }
        match self.number() {
            Type::U8 => Numbers::Bytes(Bytes::zeroed(count, Element::U8)),
            Type::U32 | Type::I32 | Type::F32 => Numbers::Words(vec![0; count]),
            Type::I64 => Numbers::Longs(vec![0; count]),
        }
    }

    /// The elements of a result that went over so many ranks.
    pub fn narrow(self, numbers: Numbers, ranks: usize) -> Bytes {
        match numbers {
            Numbers::Bytes(mut bytes) => {
                if (self.element, self.reduction) == (Element::F32, Reduction::Average) {
                    for float in bytes.as_chunks_mut::<4>().0 {
                        *float = (f32::from_ne_bytes(*float) / ranks as f32).to_ne_bytes();
                    }
                }
                bytes
            }
            Numbers::Words(words) => match self.element {
                Element::F32 => self.elements(words, |x| self.float(x, ranks).to_ne_bytes()),
                Element::F16 => {
                    self.elements(words, |x| f16::from_f32(self.float(x, ranks)).to_ne_bytes())
                }
                Element::BF16 => {
                    self.elements(words, |x| bf16::from_f32(self.float(x, ranks)).to_ne_bytes())
                }
                Element::I32 => self.elements(words, u32::to_ne_bytes),
                Element::U8 => self.elements(words, |x| [x as u8]),
            },
            Numbers::Longs(longs) => match self.element {
                Element::U8 => self.elements(longs, |x| [(x / ranks as i64) as u8]),
                _ => self.elements(longs, |x| ((x / ranks as i64) as i32).to_ne_bytes()),
            },
        }
    }

    /// Whether MPI can take these bytes as they are. It wants numbers aligned, as those of tensors are.
    fn fits(self, bytes: &[u8]) -> bool {
        self.is_plain() && bytes.as_ptr().addr().is_multiple_of(self.number().size())
    }

    /// The elements that numbers become.
    fn elements<T, const N: usize>(self, numbers: Vec<T>, element: impl Fn(T) -> [u8; N]) -> Bytes {
        let mut bytes = Bytes::zeroed(numbers.len() * N, self.element);
        for (place, number) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(numbers) {
            *place = element(number);
        }
        bytes
    }

    fn word(self, x: f32) -> u32 {
        if self.takes_max() { place(x) as u32 } else { x.to_bits() }
    }

    fn float(self, word: u32, ranks: usize) -> f32 {
        match self.reduction {
            Reduction::Max => float_at(word as i32),
            Reduction::Sum => f32::from_bits(word),
            Reduction::Average => f32::from_bits(word) / ranks as f32,
        }
    }
}

/// The float's place in the order of all floats: -0 is below 0, and NaN above everything.
fn place(x: f32) -> i32 {
    if x.is_nan() { i32::MAX } else { turned(x.to_bits() as i32) }
}

/// The float at this place; the last one is NaN.
fn float_at(place: i32) -> f32 {
    f32::from_bits(turned(place) as u32)
}

/// Negative floats count down from their sign bit, integers up.
fn turned(bits: i32) -> i32 {
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

fn words<const N: usize>(bytes: &[u8], word: impl Fn([u8; N]) -> u32) -> Numbers {
    Numbers::Words(bytes.as_chunks::<N>().0.iter().map(|b| word(*b)).collect())
}

fn longs<const N: usize>(bytes: &[u8], long: impl Fn([u8; N]) -> i64) -> Numbers {
    Numbers::Longs(bytes.as_chunks::<N>().0.iter().map(|b| long(*b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_keep_their_order_and_nan_is_last() {
        let floats = [
            f32::NEG_INFINITY,
            f32::MIN,
            -3.0e38,
            -1.0,
            -1e-45,
            -0.0,
            0.0,
            1e-45,
            1.0,
            f32::MAX,
            f32::INFINITY,
        ];
        for pair in floats.windows(2) {
            assert!(place(pair[0]) < place(pair[1]), "{pair:?}");
        }
        for x in floats {
            assert_eq!(float_at(place(x)).to_bits(), x.to_bits());
            assert!(place(x) < place(f32::NAN) && place(x) < place(-f32::NAN));
        }
        assert!(float_at(place(-f32::NAN)).is_nan());
    }

    /// What MPI does with the numbers of all ranks.
    fn combined(wire: Wire, ranks: Vec<Numbers>) -> Numbers {
        let fold32 = |f: fn(u32, u32) -> u32, ranks: Vec<Vec<u32>>| {
            let column = |i: usize| ranks.iter().map(|rank| rank[i]).reduce(f).unwrap();
            Numbers::Words((0..ranks[0].len()).map(column).collect())
        };
        let words = |numbers| match numbers {
            Numbers::Words(words) => words,
            Numbers::Bytes(bytes) => {
                bytes.as_chunks::<4>().0.iter().map(|b| u32::from_ne_bytes(*b)).collect()
            }
            Numbers::Longs(longs) => panic!("{longs:?}"),
        };
        let longs = |numbers| match numbers {
            Numbers::Longs(longs) => longs,
            other => panic!("{other:?}"),
        };
        match (wire.number(), wire.takes_max()) {
            (Type::F32, false) => fold32(
                |a, b| (f32::from_bits(a) + f32::from_bits(b)).to_bits(),
                ranks.into_iter().map(words).collect(),
            ),
            (Type::U32, false) => fold32(u32::wrapping_add, ranks.into_iter().map(words).collect()),
            (Type::I32, true) => fold32(
                |a, b| (a as i32).max(b as i32) as u32,
                ranks.into_iter().map(words).collect(),
            ),
            (Type::I64, false) => {
                let ranks: Vec<Vec<i64>> = ranks.into_iter().map(longs).collect();
                let column = |i: usize| ranks.iter().map(|rank| rank[i]).sum();
                Numbers::Longs((0..ranks[0].len()).map(column).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_mpi_combines_is_what_the_host_reduces() {
        for element in Element::ALL {
            for reduction in Reduction::ALL {
                let wire = Wire::new(element, reduction);
                if wire.number() == Type::U8 {
                    continue; // MPI gets the bytes and gives the bytes.
                }
                // Every pattern of 16 bits, as they come.
                let buffer = |seed: u64| -> Vec<u8> {
                    let word = |i: u64| (i * 0x9E37_79B9_7F4A_7C15 + seed).to_le_bytes();
                    (0..512).flat_map(word).collect()
                };
                let buffers: Vec<Vec<u8>> = (0..3).map(|rank| buffer(rank * 77_777)).collect();
                let wide = buffers
                    .iter()
                    .map(|buffer| wire.widen(Bytes::from_bytes_vec(buffer.clone())))
                    .collect();
                let got = wire.narrow(combined(wire, wide), 3);
                let mut want = buffers[0].clone();
                let others: Vec<&[u8]> = buffers[1..].iter().map(Vec::as_slice).collect();
                crate::host::element::reduce(element, reduction, &others, 0, &mut want);
                for (got, want) in numbers(element, &got).zip(numbers(element, &want)) {
                    // Which NaN it is, is left open.
                    assert!(got == want || got.is_nan() && want.is_nan(), "{got} {want} {wire:?}");
                }
            }
        }
    }

    fn numbers(element: Element, bytes: &[u8]) -> impl Iterator<Item = f64> {
        bytes.chunks(element.size()).map(move |b| match element {
            Element::F32 => f32::from_ne_bytes(b.try_into().unwrap()).into(),
            Element::F16 => f16::from_ne_bytes(b.try_into().unwrap()).into(),
            Element::BF16 => bf16::from_ne_bytes(b.try_into().unwrap()).into(),
            Element::I32 => i32::from_ne_bytes(b.try_into().unwrap()).into(),
            Element::U8 => b[0].into(),
        })
    }
}
