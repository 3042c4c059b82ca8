//! Choosing the next token from a model's logits.

use std::cmp::Ordering;

/// Why no token can be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A setting is outside its range.
    #[error("`{setting}` is {value}: expected {expected}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// Its range.
        expected: &'static str,
    },
    /// A logit is NaN or infinite; minus infinity is allowed, it forbids a token.
    #[error(
        "the logit of token {token} is {value}: the model's weights or activations are not finite; \
         use an older checkpoint"
    )]
    NotFinite {
        /// The token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// There is nothing to choose from.
    #[error("no token has a logit above minus infinity: at least one must be allowed")]
    NoToken,
}

/// Chooses tokens by temperature, top-k and top-p
/// ([nucleus sampling](https://arxiv.org/abs/1904.09751)).
///
/// The n-th choice depends on the logits, the seed and n alone. Of equal logits, the lower token
/// comes first.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    seed: u64,
    draws: u64,
}

impl Sampler {
    /// A sampler. `temperature` divides the logits, 0 takes the best token always; of the `top_k`
    /// best tokens (0: all), the fewest are kept whose probabilities reach `top_p` (1: all).
    ///
    /// # Errors
    /// [`SamplingError::Setting`].
    pub fn new(
        temperature: f64,
        top_k: usize,
        top_p: f64,
        seed: u64,
    ) -> Result<Self, SamplingError> {
        let refused =
            |setting, value, expected| Err(SamplingError::Setting { setting, value, expected });
        if !(temperature.is_finite() && temperature >= 0.0) {
            return refused("temperature", temperature, "a number of at least 0");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refused("top_p", top_p, "a number above 0 and at most 1");
        }
        Ok(Self { temperature, top_k, top_p, seed, draws: 0 })
    }

    /// Chooses a token from its logits `[vocab]`.
    ///
    /// # Errors
    /// [`SamplingError::NotFinite`] for NaN and plus infinity, [`SamplingError::NoToken`] where all
    /// logits are minus infinity or there are none.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        let bad = |value: &f32| value.is_nan() || *value == f32::INFINITY;
        if let Some((token, value)) = logits.iter().enumerate().find(|(_, value)| bad(value)) {
            return Err(SamplingError::NotFinite { token, value: *value });
        }
        let draw = uniform(self.seed, self.draws);
        self.draws += 1;
        let allowed = (0u32..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let mut candidates: Vec<(u32, f32)> = allowed.map(|(t, logit)| (t, *logit)).collect();
        let best = candidates.iter().min_by(better_first).ok_or(SamplingError::NoToken)?;
        if self.temperature == 0.0 {
            return Ok(best.0);
        }
        let best_logit = f64::from(best.1);
        self.keep_top_k(&mut candidates);
        let weight = |logit: f32| ((f64::from(logit) - best_logit) / self.temperature).exp();
        let mut weights: Vec<f64> = candidates.iter().map(|(_, logit)| weight(*logit)).collect();
        self.keep_top_p(&mut weights);
        let mut left = draw * weights.iter().sum::<f64>();
        // By rounding, the sum can end just above the last step.
        let mut chosen = best_token(&candidates);
        for ((token, _), weight) in candidates.iter().zip(&weights).filter(|(_, w)| **w > 0.0) {
            chosen = *token;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        Ok(chosen)
    }

    /// Keeps the best tokens, sorted where their order matters later.
    fn keep_top_k(&self, candidates: &mut Vec<(u32, f32)>) {
        if (1..candidates.len()).contains(&self.top_k) {
            candidates.select_nth_unstable_by(self.top_k, |a, b| better_first(&a, &b));
            candidates.truncate(self.top_k);
        }
        if self.top_k > 0 || self.top_p < 1.0 {
            candidates.sort_unstable_by(|a, b| better_first(&a, &b));
        }
    }

    /// Keeps the head of sorted weights that reaches `top_p` of their sum, the crossing one included.
    fn keep_top_p(&self, weights: &mut Vec<f64>) {
        if self.top_p == 1.0 {
            return;
        }
        let mut missing = self.top_p * weights.iter().sum::<f64>();
        let crossing = weights.iter().position(|weight| {
            missing -= weight;
            missing <= 0.0
        });
        if let Some(last) = crossing {
            weights.truncate(last + 1);
        }
    }
}

fn better_first(a: &&(u32, f32), b: &&(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn best_token(candidates: &[(u32, f32)]) -> u32 {
    candidates.first().map_or(0, |(token, _)| *token)
}

/// The number in [0, 1) of a (seed, draw) pair: two rounds of the finaliser of
/// [SplitMix64](https://doi.org/10.1145/2660193.2660195).
fn uniform(seed: u64, draw: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let golden = 0x9e37_79b9_7f4a_7c15u64;
    let stream = mix(seed.wrapping_add(golden));
    let bits = mix(stream.wrapping_add(draw.wrapping_add(1).wrapping_mul(golden)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(mut sampler: Sampler, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(logits).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn temperature_0_takes_the_first_of_the_best() {
        let mut sampler = Sampler::new(0.0, 0, 1.0, 1).unwrap();
        assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, -1.0]).unwrap(), 1);
        assert_eq!(sampler.sample(&[-0.0, f32::NEG_INFINITY, -5.0]).unwrap(), 0);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, f32::NEG_INFINITY, 2.0, -1.0];
        for temperature in [0.5, 1.0, 2.0] {
            let found = frequencies(Sampler::new(temperature, 0, 1.0, 7).unwrap(), &logits);
            let weights = logits.map(|logit| (f64::from(logit) / temperature).exp());
            let sum: f64 = weights.iter().sum();
            for (found, weight) in found.iter().zip(weights) {
                assert!((found - weight / sum).abs() < 0.015, "{found} {}", weight / sum);
            }
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let kept = |top_k, top_p| -> Vec<bool> {
            let sampler = Sampler::new(1.0, top_k, top_p, 3).unwrap();
            frequencies(sampler, &logits).iter().map(|f| *f > 0.0).collect()
        };
        assert_eq!(kept(2, 1.0), [true, true, false, false]);
        assert_eq!(kept(99, 1.0), [true; 4]);
        assert_eq!(kept(0, 0.65), [true, true, false, false]);
        assert_eq!(kept(0, 0.75), [true, true, true, false]);
        assert_eq!(kept(0, 1e-9), [true, false, false, false]);
        // Top-p counts within the top-k: 0.4 of 0.7 reaches a half.
        assert_eq!(kept(2, 0.5), [true, false, false, false]);
        assert_eq!(kept(1, 0.9), [true, false, false, false]);
        // Ties go to the lower token.
        let mut sampler = Sampler::new(1.0, 2, 1.0, 0).unwrap();
        assert!((0..200).all(|_| sampler.sample(&[1.0; 9]).unwrap() < 2));
    }

    #[test]
    fn choices_depend_on_seed_and_number_only() {
        let draw = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(1.0, 0, 1.0, seed).unwrap();
            (0..50).map(|_| sampler.sample(&[0.0; 100]).unwrap()).collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut other = Sampler::new(1.0, 0, 1.0, 1).unwrap();
        other.sample(&[1.0, 2.0]).unwrap();
        assert_eq!(other.sample(&[0.0; 100]).unwrap(), draw(1)[1]);
        let mean = (0..10_000).map(|n| uniform(9, n)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }

    #[test]
    fn broken_input_is_refused() {
        let mut sampler = Sampler::new(1.0, 0, 1.0, 1).unwrap();
        let message = sampler.sample(&[0.0, f32::NAN]).unwrap_err().to_string();
        assert_eq!(
            message,
            "the logit of token 1 is NaN: the model's weights or activations are not finite; use an \
             older checkpoint"
        );
        assert!(sampler.sample(&[f32::INFINITY]).is_err());
        assert_eq!(sampler.sample(&[]), Err(SamplingError::NoToken));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3]), Err(SamplingError::NoToken));
        let message = |t, p| Sampler::new(t, 0, p, 1).unwrap_err().to_string();
        assert_eq!(message(-1.0, 1.0), "`temperature` is -1: expected a number of at least 0");
        assert_eq!(message(1.0, 0.0), "`top_p` is 0: expected a number above 0 and at most 1");
        assert!(Sampler::new(f64::NAN, 0, 1.0, 1).is_err());
        assert!(Sampler::new(1.0, 0, f64::NAN, 1).is_err());
    }
}
