//! Initial values as a function of (seed, parameter name, element index), from a counter-based
//! generator, so that no mesh, rank count or order of construction changes them.

use rayon::prelude::*;

/// The distribution of a parameter's initial values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Normal with mean 0, cut to `-limit..limit`.
    TruncatedNormal {
        /// Standard deviation before the cut.
        std: f64,
        /// Largest absolute value.
        limit: f64,
    },
}

/// The initial values of elements `start..start + length` (row-major) of a parameter.
pub fn initial_values(
    initial: Initial,
    seed: u64,
    name: &str,
    start: usize,
    length: usize,
) -> Vec<f32> {
    let key = hash(seed ^ xxhash_rust::xxh3::xxh3_64(name.as_bytes()));
    let draw = |f: &(dyn Fn(f64) -> f64 + Sync)| {
        (start..start + length).into_par_iter().map(|i| f(uniform(key, i as u64)) as f32).collect()
    };
    match initial {
        Initial::Ones => vec![1.0; length],
        Initial::Zeros => vec![0.0; length],
        Initial::Normal { std } => draw(&|u| std * inverse_normal(u)),
        Initial::TruncatedNormal { std, limit } => {
            let tail = normal_tail(limit / std);
            draw(&|u| {
                std * inverse_normal(tail + u * (1.0 - 2.0 * tail)).clamp(-limit / std, limit / std)
            })
        }
    }
}

/// A uniform number in the open interval (0, 1).
fn uniform(key: u64, index: u64) -> f64 {
    let bits = hash(key.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn hash(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `P(X > x)` of a standard normal X, for `x >= 0`, by the continued fraction of Mills' ratio for
/// large x and by Simpson's rule near 0.
fn normal_tail(x: f64) -> f64 {
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if x > 6.0 {
        let fraction = (1..60).rev().fold(x, |f, k| x + f64::from(k) / f);
        return density(x) / fraction;
    }
    let steps = 2000;
    let h = x / f64::from(steps);
    let inner: f64 =
        (1..steps).map(|i| density(h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    0.5 - (density(0.0) + inner + density(x)) * h / 3.0
}

/// The quantile function of the standard normal (Acklam's rational approximation, relative error
/// below 1.2e-9), for `0 < p < 1`.
fn inverse_normal(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 5] =
        [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
    let polynomial = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        polynomial(&C, q) / polynomial(&D, q)
    };
    if p < 0.02425 {
        tail(p)
    } else if p > 1.0 - 0.02425 {
        -tail(1.0 - p)
    } else {
        let q = p - 0.5;
        let r = q * q;
        q * polynomial(&A, r) / polynomial(&B, r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn quantiles_are_right() {
        for (p, x) in [(0.5, 0.0), (0.975, 1.959963984540054), (0.001, -3.090232306167813)] {
            assert!((inverse_normal(p) - x).abs() < 1e-8);
        }
        assert!((normal_tail(1.959963984540054) - 0.025).abs() < 1e-12);
        assert!((normal_tail(7.0) - 1.279812543885835e-12).abs() < 1e-20);
    }

    #[test]
    fn distributions_have_their_moments() {
        let n = 200_000;
        let (mean, std) = moments(&initial_values(Initial::Normal { std: 2.0 }, 1, "w", 0, n));
        assert!(mean.abs() < 0.02 && (std - 2.0).abs() < 0.02, "{mean} {std}");
        let cut = initial_values(Initial::TruncatedNormal { std: 1.0, limit: 2.0 }, 1, "w", 0, n);
        assert!(cut.iter().all(|x| x.abs() <= 2.0));
        let (mean, std) = moments(&cut);
        // The standard deviation of a standard normal cut at 2 is 0.87963.
        assert!(mean.abs() < 0.01 && (std - 0.87963).abs() < 0.01, "{mean} {std}");
    }

    #[test]
    fn a_range_is_a_range_of_the_whole() {
        let draw =
            |start, n| initial_values(Initial::Normal { std: 1.0 }, 42, "a.weight", start, n);
        assert_eq!(draw(0, 331)[100..177], draw(100, 77));
        assert_ne!(draw(0, 5), initial_values(Initial::Normal { std: 1.0 }, 42, "b.weight", 0, 5));
        assert_ne!(draw(0, 5), initial_values(Initial::Normal { std: 1.0 }, 43, "a.weight", 0, 5));
    }
}
