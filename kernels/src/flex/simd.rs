//! Vectorised mathematics on `f32` slices.
//!
//! The functions are written as plain loops. They are inlined into functions made by [`simd_fn`], which
//! are compiled once for every instruction set, so that the compiler vectorises them.
//! Reductions keep 16 partial sums in a fixed order: the result does not depend on the machine's
//! vector width.

use std::sync::LazyLock;

pub(crate) use pulp::NullaryFnOnce;
use pulp::{Arch, WithSimd};

const LANES: usize = 16;

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// Runs `f` with the widest vector instructions that the machine has. Only what is inlined into
/// `call` is compiled for them: make the operation with [`simd_fn`].
#[inline(always)]
pub(crate) fn with_simd<F: WithSimd>(f: F) -> F::Output {
    ARCH.dispatch(f)
}

/// A function whose body is compiled for every instruction set and picked at run time. (A closure would
/// not do: the compiler does not inline a large one, and what is not inlined gets no vectors.)
/// References in the arguments have the lifetime `'a`.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $output:ty $body:block) => {
        $(#[$meta])*
        $vis fn $name<'a>($($arg: $type),*) -> $output {
            struct Call<'a> {
                $($arg: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl<'a> $crate::flex::NullaryFnOnce for Call<'a> {
                type Output = $output;

                #[inline(always)]
                fn call(self) -> $output {
                    let Self { $($arg,)* lifetime: _ } = self;
                    $body
                }
            }
            $crate::flex::with_simd(Call { $($arg,)* lifetime: std::marker::PhantomData })
        }
    };
}
pub(crate) use simd_fn;

/// `e^x`, within 2 units in the last place; 0 below -87.3, as for masked scores of minus infinity.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0;
    p = r.mul_add(p, 1.0 / 720.0);
    p = r.mul_add(p, 1.0 / 120.0);
    p = r.mul_add(p, 1.0 / 24.0);
    p = r.mul_add(p, 1.0 / 6.0);
    p = r.mul_add(p, 0.5);
    p = r.mul_add(p, 1.0);
    p = r.mul_add(p, 1.0);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = p * power;
    // NaN passes through all of this, so that a broken step is seen.
    if x < -87.3 {
        0.0
    } else if x > 88.3 {
        f32::INFINITY
    } else {
        y
    }
}

/// `2^x` for `x` up to 127, within 2 units in the last place; 0 below -126.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    // The coefficients of 2^r on [-1/2, 1/2]: powers of ln 2 over factorials.
    const C: [f32; 7] = [
        1.525_273_4e-5,
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        std::f32::consts::LN_2,
    ];
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = C[0];
    for c in &C[1..] {
        p = r.mul_add(p, *c);
    }
    p = r.mul_add(p, 1.0);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    // NaN passes through all of this, so that a broken step is seen.
    if x < -126.0 { 0.0 } else { p * power }
}

/// The hyperbolic tangent, within 8 units in the last place (the rational function of the Eigen library).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    const ODD: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619_4e-4,
        4.893_524_6e-3,
    ];
    const EVEN: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    let x = x.clamp(-7.905_311, 7.905_311);
    let square = x * x;
    let mut p = ODD[0];
    for c in &ODD[1..] {
        p = square.mul_add(p, *c);
    }
    let mut q = EVEN[0];
    for c in &EVEN[1..] {
        q = square.mul_add(q, *c);
    }
    x * p / q
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn reduce(a: &[f32], zero: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [zero; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, *x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of a slice.
#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    reduce(a, 0.0, |x, y| x + y)
}

/// The maximum of a slice; minus infinity if it is empty.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    reduce(a, f32::NEG_INFINITY, |x, y| if y > x { y } else { x })
}

/// The inner product of two slices of equal length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (x, y) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (x_rest, y_rest) = (x.remainder(), y.remainder());
    for (x, y) in x.zip(y) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    for (i, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        lanes[i] = x.mul_add(*y, lanes[i]);
    }
    sum(&lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let mut worst = 0.0_f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((got - want).abs() / want);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "worst relative error {worst:e}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp2_and_tanh_are_close_everywhere() {
        let mut worst = [0.0_f64; 2];
        for i in -1_260_000..1_270_000 {
            let x = i as f32 * 1e-4;
            let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
            worst[0] = worst[0].max((got - want).abs() / want);
            let (got, want) = (f64::from(tanh(x * 0.1)), f64::from(x * 0.1).tanh());
            worst[1] = worst[1].max((got - want).abs() / want.abs().max(1e-30));
        }
        assert!(worst[0] < 2.0 * f64::from(f32::EPSILON), "exp2: {:e}", worst[0]);
        assert!(worst[1] < 8.0 * f64::from(f32::EPSILON), "tanh: {:e}", worst[1]);
        assert_eq!((exp2(f32::NEG_INFINITY), exp2(-200.0), exp2(0.0)), (0.0, 0.0, 1.0));
        assert!(exp2(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_of_odd_lengths() {
        for n in [0, 1, 15, 16, 17, 33, 331] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let want: f64 = a.iter().map(|x| f64::from(*x)).sum();
            assert!((f64::from(sum(&a)) - want).abs() < 1e-5);
            let squares: f64 = a.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((f64::from(dot(&a, &a)) - squares).abs() < 1e-4);
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
