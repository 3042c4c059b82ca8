//! The element types of float tensors: conversion to and from `f32`, written so that the compiler
//! vectorises it inside a [`super::simd_fn`].

use burn::tensor::{Element, bf16, f16};
use bytemuck::Pod;

use super::with_simd;

/// An element type of float tensors.
pub(crate) trait Number: Element + Pod + Send + Sync {
    /// The value as `f32`.
    fn widen(self) -> f32;
    /// The nearest number of this type, ties to the even one.
    fn narrow(value: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Number for f64 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self as f32
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        f64::from(value)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        Self::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7FFF) << 13;
        // The exponents differ by 112. The product also makes subnormal numbers normal.
        let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
        let special = magnitude | 0x7F80_0000;
        let value = if bits & 0x7C00 == 0x7C00 { special } else { finite.to_bits() };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let sign = value.to_bits() & 0x8000_0000;
        let bits = value.to_bits() ^ sign;
        // Adding this number leaves a subnormal result, rounded, in the low bits.
        const SUBNORMAL: u32 = (127 - 15 + 23 - 10 + 1) << 23;
        let subnormal = (f32::from_bits(bits) + f32::from_bits(SUBNORMAL)).to_bits();
        let subnormal = subnormal.wrapping_sub(SUBNORMAL);
        let normal = bits.wrapping_sub(112 << 23).wrapping_add(0xFFF + ((bits >> 13) & 1)) >> 13;
        let finite = if bits < 113 << 23 { subnormal } else { normal };
        let special = if bits > 0x7F80_0000 { 0x7E00 } else { 0x7C00 };
        let magnitude = if bits >= (127 + 16) << 23 { special } else { finite };
        Self::from_bits((magnitude | sign >> 16) as u16)
    }
}

/// Converts a slice into another of the same length, through `f32`.
pub(crate) fn convert<A: Number, B: Number>(from: &[A], to: &mut [B]) {
    struct Call<'a, A, B>(&'a [A], &'a mut [B]);
    impl<A: Number, B: Number> super::NullaryFnOnce for Call<'_, A, B> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            for (to, from) in self.1.iter_mut().zip(self.0) {
                *to = B::narrow(from.widen());
            }
        }
    }
    with_simd(Call(from, to));
}

/// Runs the expression with `$number` as the Rust type of a float dtype.
macro_rules! with_number {
    ($dtype:expr, $number:ident => $body:expr) => {
        match $dtype {
            burn::tensor::DType::F32 => {
                type $number = f32;
                $body
            }
            burn::tensor::DType::BF16 => {
                type $number = burn::tensor::bf16;
                $body
            }
            burn::tensor::DType::F16 => {
                type $number = burn::tensor::f16;
                $body
            }
            burn::tensor::DType::F64 => {
                type $number = f64;
                $body
            }
            other => unreachable!("a float tensor has the dtype {other:?}"),
        }
    };
}
pub(crate) use with_number;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_to_its_value() {
        for bits in 0..=u16::MAX {
            let (x, y) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(
                x.is_nan() && x.widen().is_nan() || x.widen().to_bits() == x.to_f32().to_bits()
            );
            assert!(
                y.is_nan() && y.widen().is_nan() || y.widen().to_bits() == y.to_f32().to_bits()
            );
        }
    }

    #[test]
    fn narrowing_rounds_to_the_nearest_even() {
        // All exponents and signs, with mantissas around every tie of both types.
        let tails = [0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001];
        for high in 0..=u16::MAX {
            for tail in tails {
                let x = f32::from_bits(u32::from(high) << 16 | tail);
                if x.is_nan() {
                    assert!(f16::narrow(x).is_nan() && bf16::narrow(x).is_nan());
                } else {
                    assert_eq!(f16::narrow(x).to_bits(), f16::from_f32(x).to_bits(), "{x:e}");
                    assert_eq!(bf16::narrow(x).to_bits(), bf16::from_f32(x).to_bits(), "{x:e}");
                }
            }
        }
    }
}
