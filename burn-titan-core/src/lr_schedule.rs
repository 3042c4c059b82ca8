//! The learning rate over a run: linear warm-up, stable, decay.

use std::f64::consts::PI;

use crate::config::schema::DecayType;

/// Factor of the peak learning rate for the update of `step`, counted from 0, of `total` steps.
///
/// torchtitan's rule: `warmup` steps rise linearly, reaching 1 with the last of them; the last
/// `round(total * decay_ratio)` steps decay (all after the warm-up where there is no ratio), but never
/// so many that they reach into the warm-up; between, the factor is 1. The decay starts one step later
/// than the counts say, so that it would reach `min_lr_factor` at step `total`, one after the last.
///
/// Steps past the end have the factor of the end. For example, 4 steps with 2 of warm-up and a linear
/// decay to 0 have the factors 0.5, 1, 1, 0.5.
pub fn factor(
    step: usize,
    total: usize,
    warmup: usize,
    decay_ratio: Option<f64>,
    decay_type: DecayType,
    min_lr_factor: f64,
) -> f64 {
    let after_warmup = total.saturating_sub(warmup);
    let decay = match decay_ratio {
        // Halves go to the even number, as Python's `round` does.
        Some(ratio) => ((total as f64 * ratio).round_ties_even() as usize).min(after_warmup),
        None => after_warmup,
    };
    let first_decay = warmup + (after_warmup - decay) + 1;
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    if step < first_decay {
        return 1.0;
    }
    let progress = ((step + 1 - first_decay) as f64 / decay.max(1) as f64).min(1.0);
    let remaining = match decay_type {
        DecayType::Linear => 1.0 - progress,
        DecayType::Sqrt => 1.0 - progress.sqrt(),
        DecayType::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
    };
    min_lr_factor + (1.0 - min_lr_factor) * remaining
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        total_steps: usize,
        warmup_steps: usize,
        decay_ratio: Option<f64>,
        decay_type: DecayType,
        min_lr_factor: f64,
        factor: Vec<f64>,
    }

    #[test]
    fn follows_the_golden_schedules() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/optim/lr_schedules.json");
        let text = std::fs::read_to_string(path).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cases = golden["wsd_torchtitan_rule"].clone();
        let cases: Vec<Case> = serde_json::from_value(cases).unwrap();
        assert_eq!(cases.len(), 12);
        for case in &cases {
            assert_eq!(case.factor.len(), case.total_steps);
            for (step, expected) in case.factor.iter().enumerate() {
                let found = factor(
                    step,
                    case.total_steps,
                    case.warmup_steps,
                    case.decay_ratio,
                    case.decay_type,
                    case.min_lr_factor,
                );
                assert!((found - expected).abs() < 1e-12, "step {step}: {found} {expected}");
            }
        }
    }

    #[test]
    fn odd_settings_stay_in_range() {
        for total in [0, 1, 2, 7] {
            for warmup in [0, 1, 7, 9] {
                for ratio in [None, Some(0.0), Some(0.5), Some(1.0)] {
                    for step in 0..12 {
                        let found = factor(step, total, warmup, ratio, DecayType::Sqrt, 0.1);
                        assert!((0.1..=1.0).contains(&found) || step < warmup, "{found}");
                        assert!(found > 0.0 && found <= 1.0);
                    }
                }
            }
        }
        let short = (0..4).map(|step| factor(step, 4, 2, None, DecayType::Linear, 0.0));
        assert_eq!(short.collect::<Vec<_>>(), [0.5, 1.0, 1.0, 0.5]);
        assert_eq!(factor(500, 10, 2, Some(0.5), DecayType::Linear, 0.25), 0.25);
        assert_eq!(factor(9, 10, 2, Some(0.0), DecayType::Linear, 0.25), 1.0);
    }
}
