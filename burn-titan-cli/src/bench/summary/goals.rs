//! What was to be reached on one H100, and whether it was: ratios to PyTorch on the same device, in the same run.

use serde_json::Value;

use super::Measured;
use super::tables::{operations_beside, peer_of_step, ratio, subjects, table};

/// A number that was to be reached.
struct Goal {
    what: &'static str,
    /// The worst that was measured; `None` where nothing was.
    measured: Option<f64>,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A table of all goals; nothing but on CUDA, and nothing of tiny sizes.
pub(super) fn goals(measured: &Measured) -> String {
    if !measured.about.iter().any(|(name, value)| name == "device" && value == "cuda") {
        return String::new();
    }
    let least = |ratios: Vec<f64>| ratios.into_iter().min_by(f64::total_cmp);
    let most = |ratios: Vec<f64>| ratios.into_iter().max_by(f64::total_cmp);
    let attention = |operation: &str| {
        let ratios = operations_beside(measured)
            .filter(|(part, of, _)| part.starts_with("attention-") && *of == operation);
        least(ratios.map(|(_, _, ratio)| ratio).collect())
    };
    let steps = |key: &str| -> Vec<f64> {
        let beside = |(name, part): (&str, &Value)| {
            ratio(part[key].as_f64(), peer_of_step(measured, name, "compile", key))
        };
        subjects(measured, "step").filter_map(beside).collect()
    };
    let warm = measured.steps.iter().filter(|step| step.code == 0);
    let warm = warm.filter(|step| step.name.starts_with("start-warm")).map(|step| step.seconds);
    let goals = [
        Goal {
            what: "attention, forward: speed beside FlashAttention",
            measured: attention("forward"),
            bound: Bound::AtLeast(0.5),
        },
        Goal {
            what: "attention, forward and backward: speed beside FlashAttention",
            measured: attention("forward+backward"),
            bound: Bound::AtLeast(0.5),
        },
        Goal {
            what: "training: tokens/s beside PyTorch compiled",
            measured: least(steps("tokens_per_second")),
            bound: Bound::AtLeast(0.6),
        },
        Goal {
            what: "training: memory beside PyTorch compiled",
            measured: most(steps("memory_gib")),
            bound: Bound::AtMost(1.0),
        },
        Goal {
            what: "seconds to the end of the first step, with warm caches",
            measured: most(warm.collect()),
            bound: Bound::AtMost(10.0),
        },
    ];
    let rows: Vec<Vec<String>> = goals.iter().map(Goal::row).collect();
    table("Goals: the worst of all sizes", &["", "measured", "goal", ""], &rows)
}

impl Goal {
    fn row(&self) -> Vec<String> {
        let (goal, reached) = match self.bound {
            Bound::AtLeast(bound) => {
                (format!("{bound} or more"), self.measured.map(|it| it >= bound))
            }
            Bound::AtMost(bound) => {
                (format!("{bound} or less"), self.measured.map(|it| it <= bound))
            }
        };
        let verdict = match reached {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "not measured",
        };
        let measured = self.measured.map_or("-".into(), |it| format!("{it:.2}"));
        vec![self.what.to_owned(), measured, goal, verdict.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Step;
    use super::*;

    #[test]
    fn the_worst_size_decides() {
        let step = |speed: f64, memory: f64| json!({ "subject": "step", "tokens_per_second": speed, "memory_gib": memory });
        let theirs = |part: &str| json!({ "part": part, "mode": "compile", "tokens_per_second": 100.0, "memory_gib": 2.0 });
        let peer = json!({ "entries": [theirs("step-a"), theirs("step-b")] });
        let parts = [("step-a", step(90.0, 2.5)), ("step-b", step(65.0, 1.0)), ("peer", peer)];
        let mut measured = Measured {
            about: vec![("device".into(), "cuda".into())],
            steps: vec![Step::of("start-warm\t4.5\t0\tagain").unwrap()],
            parts: parts.into_iter().map(|(name, part)| (name.to_owned(), part)).collect(),
        };
        let page = goals(&measured);
        for line in [
            "| attention, forward: speed beside FlashAttention | - | 0.5 or more | not measured |",
            "| training: tokens/s beside PyTorch compiled | 0.65 | 0.6 or more | reached |",
            "| training: memory beside PyTorch compiled | 1.25 | 1 or less | **missed** |",
            "| seconds to the end of the first step, with warm caches | 4.50 | 10 or less | reached |",
        ] {
            assert!(page.lines().any(|it| it == line), "no line {line} in\n{page}");
        }
        measured.about[0].1 = "cuda, --quick: tiny sizes".into();
        assert_eq!(goals(&measured), "");
    }
}
