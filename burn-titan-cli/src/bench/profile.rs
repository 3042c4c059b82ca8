//! What a step's time is made of: kinds of kernels, and the time in which the device has nothing to do.

use std::collections::BTreeMap;
use std::fmt::Write;

use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::launches::{Launches, observe};
use serde::Serialize;

/// Kernels of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kind {
    /// What they do.
    pub kind: &'static str,
    /// Launches of a step.
    pub launches: f64,
    /// Seconds of a step.
    pub seconds: f64,
}

/// A part of a step's time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    #[serde(flatten)]
    kind: Kind,
    /// Of the step's time.
    percent: f64,
}

/// Steps that are observed at once, beyond the one that is taken off them: beginning a run launches kernels too.
const STEPS: usize = 2;

/// The kernels of a step of a run that `train` trains for so many steps. None on flex, which launches none.
///
/// # Errors
/// As `train`.
pub fn of_a_step(
    mut train: impl FnMut(usize) -> Result<(), TrainError>,
) -> Result<Vec<Kind>, TrainError> {
    let mut observed = |steps: usize| {
        let (result, launches) = observe(|| train(steps));
        result.map(|()| {
            let mut kinds = BTreeMap::<&str, (f64, f64)>::new();
            for Launches { kernel, count, seconds } in launches {
                let sums = kinds.entry(kind(&kernel)).or_default();
                *sums = (sums.0 + count as f64, sums.1 + seconds);
            }
            kinds
        })
    };
    let (begun, all) = (observed(1)?, observed(1 + STEPS)?);
    let kinds = all.into_iter().map(|(kind, (launches, seconds))| {
        let (launches_before, seconds_before) = begun.get(kind).copied().unwrap_or_default();
        let of_a_step = |all: f64, before: f64| ((all - before) / STEPS as f64).max(0.0);
        Kind {
            kind,
            launches: of_a_step(launches, launches_before),
            seconds: of_a_step(seconds, seconds_before),
        }
    });
    Ok(kinds.collect())
}

/// The kind of a kernel, by the path of its type.
fn kind(kernel: &str) -> &'static str {
    const OURS: &str = "burn_titan_kernels::";
    const KINDS: [(&str, &str); 7] = [
        ("attention", "attention"),
        ("cross_entropy", "loss"),
        ("adamw", "optimizer"),
        ("norm::", "optimizer"),
        ("grouped_matmul", "experts"),
        ("permute", "experts"),
        ("router", "experts"),
    ];
    match kernel.strip_prefix(OURS) {
        Some(module) => {
            let found = KINDS.iter().find(|(start, _)| module.starts_with(start));
            found.map_or("norms, rotation, activation, embedding", |(_, kind)| kind)
        }
        None if kernel.contains("matmul") => "matrix products",
        None => "elementwise, reductions, copies",
    }
}

/// The parts of a step of so many seconds, the largest first; nothing without kinds.
pub fn parts(kinds: &[Kind], step: f64) -> Vec<Part> {
    if kinds.is_empty() {
        return vec![];
    }
    let busy: f64 = kinds.iter().map(|kind| kind.seconds).sum();
    let gaps = Kind { kind: "gaps", launches: 0.0, seconds: (step - busy).max(0.0) };
    let part = |kind: Kind| Part { percent: 100.0 * kind.seconds / step, kind };
    let mut parts: Vec<Part> = kinds.iter().cloned().chain([gaps]).map(part).collect();
    parts.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    parts
}

/// The parts as text.
pub fn table(parts: &[Part]) -> String {
    let mut text = String::new();
    if !parts.is_empty() {
        let _ = writeln!(text, "{:<42}{:>10}{:>10}{:>8}", "made of", "launches", "ms", "%");
    }
    for Part { kind: Kind { kind, launches, seconds }, percent } in parts {
        let milliseconds = seconds * 1e3;
        let _ = writeln!(text, "{kind:<42}{launches:>10.0}{milliseconds:>10.2}{percent:>8.1}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_of_a_kind() {
        for (kernel, want) in [
            ("burn_titan_kernels::attention::cube::forward::Forward", "attention"),
            ("burn_titan_kernels::norm::cube::Squares", "optimizer"),
            ("burn_titan_kernels::router::cube::Choose", "experts"),
            (
                "burn_titan_kernels::rms_norm::cube::Forward",
                "norms, rotation, activation, embedding",
            ),
            ("cubek_matmul::launch::MatmulEntry", "matrix products"),
            ("burn_cubecl::kernel::cast::Cast", "elementwise, reductions, copies"),
        ] {
            assert_eq!(kind(kernel), want, "{kernel}");
        }
    }

    #[test]
    fn what_no_kernel_takes_is_a_gap() {
        let kind = |kind, seconds| Kind { kind, launches: 2.0, seconds };
        let parts = parts(&[kind("attention", 1.0), kind("matrix products", 2.0)], 4.0);
        let found: Vec<_> = parts.iter().map(|part| (part.kind.kind, part.percent)).collect();
        assert_eq!(found, [("matrix products", 50.0), ("attention", 25.0), ("gaps", 25.0)]);
        assert_eq!(super::parts(&[], 4.0), []);
        assert!(
            table(&parts).ends_with(
                "gaps                                               0   1000.00    25.0\n"
            )
        );
    }
}
