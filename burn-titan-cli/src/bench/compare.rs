//! `bench compare`: whether two runs of one config have the same losses, on two devices for example.

use burn_titan_core::metrics::{StepMetrics, read_metrics};
use burn_titan_core::trainer::TrainError;
use serde_json::json;

use super::arguments::CompareArguments;
use super::report::write_json;
use crate::output;

pub fn run(arguments: &CompareArguments) -> Result<(), TrainError> {
    let [first, second] = [&arguments.first, &arguments.second].map(|folder| {
        let path = folder.join("metrics.jsonl");
        read_metrics(&path).map(|steps| (path, steps))
    });
    let ((first_path, first), (second_path, second)) = (first?, second?);
    if first.len() != second.len() || first.is_empty() {
        return Err(TrainError::File {
            path: second_path.display().to_string(),
            cause: format!(
                "{} steps, but {} has {}: compare runs of as many steps",
                second.len(),
                first_path.display(),
                first.len()
            ),
        });
    }
    let (step, difference) = worst(&first, &second);
    output::line(&format!(
        "{} steps: losses differ by {difference:.2e} at most (step {step}), and may by {:.2e}",
        first.len(),
        arguments.within
    ))?;
    let losses = |steps: &[StepMetrics]| steps.iter().map(|it| it.loss).collect::<Vec<f64>>();
    write_json(
        arguments.json.as_deref(),
        &json!({
            "subject": "compare",
            "steps": first.len(),
            "worst_step": step,
            "difference": difference,
            "within": arguments.within,
            "passed": difference <= arguments.within,
            "losses": [losses(&first), losses(&second)],
        }),
    )?;
    if difference <= arguments.within {
        return Ok(());
    }
    Err(TrainError::Differ { step, difference, within: arguments.within })
}

/// The step whose losses differ most, relative to the first run's, and by how much; infinitely where one is not
/// finite.
fn worst(first: &[StepMetrics], second: &[StepMetrics]) -> (u64, f64) {
    let differences = first.iter().zip(second).map(|(first, second)| {
        let difference = (first.loss - second.loss).abs() / first.loss.abs();
        (first.step, if difference.is_nan() { f64::INFINITY } else { difference })
    });
    differences.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_step_decides() {
        let run = |losses: [f64; 3]| {
            let step = |(i, loss)| StepMetrics { step: i as u64 + 1, loss, ..Default::default() };
            losses.into_iter().enumerate().map(step).collect::<Vec<_>>()
        };
        let (step, difference) = worst(&run([4.0, 2.0, 1.0]), &run([4.0, 2.5, 1.1]));
        assert!(step == 2 && (difference - 0.25).abs() < 1e-12);
        assert_eq!(worst(&run([1.0; 3]), &run([1.0, 1.0, f64::NAN])), (3, f64::INFINITY));
    }
}
