//! `doctor --kernels`: every kernel on a device of this machine, against its plain-tensor reference in float64.
//!
//! `fused.rs` has the operations that autodiff sees, with their gradients, `experts.rs` those of experts; `flat.rs` those
//! on flat parameters and what ranks exchange; `exchanges.rs` NCCL; `compare.rs` how far results may be from the
//! reference. Sizes are odd: they divide by nothing that a kernel is built of.

mod compare;
mod exchanges;
mod experts;
mod flat;
mod fused;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use burn_titan_core::trainer::TrainError;
use serde_json::{Value, json};

use compare::Difference;

use crate::bench::{name_of, write_json};
use crate::generate::open_named_device;
use crate::output;

/// Checks all kernels on the device of this name, in each of these formats that it has (all, if none are given); prints a line for each check, and
/// writes them to `json`.
///
/// # Errors
/// [`TrainError::Kernels`] if one of them fails; if there is no such device; if the file cannot be written.
pub fn run(
    device_name: &str,
    formats: Option<&[DType]>,
    json: Option<&Path>,
) -> Result<(), TrainError> {
    if let Some(path) = json {
        output::check_folder(path)?;
    }
    let device = open_named_device(device_name)?;
    let formats = formats.unwrap_or(&[DType::F32, DType::F16, DType::BF16]).iter().copied();
    let dtypes = formats.filter(|dtype| device.supports_dtype(*dtype)).collect();
    let (json, name) = (json.map(Path::to_path_buf), device_name.to_owned());
    let mut checker = Checker { device, name, dtypes, json, findings: Vec::new() };
    fused::check(&mut checker)?;
    experts::check(&mut checker)?;
    flat::check(&mut checker)?;
    exchanges::check(&mut checker)?;
    // Last, for where products are tuned each of them takes a while.
    fused::products(&mut checker)?;
    let (failed, checked) = (checker.failed(), checker.findings.len());
    output::line(&format!("{} of {checked} checks passed on {device_name}", checked - failed))?;
    match failed {
        0 => Ok(()),
        failed => Err(TrainError::Kernels { device: device_name.to_owned(), failed, checked }),
    }
}

/// Runs checks, and keeps what they found.
struct Checker {
    device: Device,
    /// Its name.
    name: String,
    /// The formats that the device computes in.
    dtypes: Vec<DType>,
    /// Where findings are written, after every check.
    json: Option<PathBuf>,
    findings: Vec<Finding>,
}

impl Checker {
    /// Makes a check and prints its line. A panic, as of a device that refuses a kernel, fails this check alone.
    fn check(
        &mut self,
        kernel: &'static str,
        case: &str,
        dtype: DType,
        differences: impl FnOnce(&Device) -> Vec<Difference>,
    ) -> Result<(), TrainError> {
        let found = catch_unwind(AssertUnwindSafe(|| differences(&self.device)));
        let outcome = match found {
            Ok(found) => {
                let worst = found.into_iter().max_by(Difference::by_share);
                worst.ok_or_else(|| "nothing was compared".to_owned())
            }
            Err(panic) => Err(message_of(panic.as_ref())),
        };
        let finding = Finding { kernel, case: case.to_owned(), dtype, outcome };
        output::line(&finding.to_string())?;
        self.findings.push(finding);
        write_json(self.json.as_deref(), &self.to_json())
    }

    fn failed(&self) -> usize {
        self.findings.iter().filter(|finding| !finding.passed()).count()
    }

    fn to_json(&self) -> Value {
        let checks: Vec<Value> = self.findings.iter().map(Finding::to_json).collect();
        let (checked, failed) = (checks.len(), self.failed());
        json!({ "device": self.name, "checked": checked, "failed": failed, "checks": checks })
    }
}

/// What a panic said, on one line.
fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a check found.
struct Finding {
    kernel: &'static str,
    case: String,
    dtype: DType,
    /// The result that is nearest to its bound, or beyond it; or why there is none.
    outcome: Result<Difference, String>,
}

impl Finding {
    fn passed(&self) -> bool {
        self.outcome.as_ref().is_ok_and(Difference::is_within)
    }

    fn to_json(&self) -> Value {
        let (of, error, bound, message) = match &self.outcome {
            Ok(worst) => (Some(worst.of), Some(worst.error), Some(worst.bound), None),
            Err(message) => (None, None, None, Some(message)),
        };
        json!({
            "kernel": self.kernel,
            "case": self.case,
            "dtype": name_of(self.dtype),
            "passed": self.passed(),
            "of": of,
            "error": error,
            "bound": bound,
            "message": message,
        })
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.passed() { "ok  " } else { "FAIL" };
        let (kernel, case, dtype) = (self.kernel, &self.case, name_of(self.dtype));
        write!(f, "{verdict} {kernel:22} {case:44} {dtype:5} ")?;
        match &self.outcome {
            Ok(worst) => {
                write!(f, "{:.1e} of {:.1e} at most ({})", worst.error, worst.bound, worst.of)
            }
            Err(message) => write!(f, "{}", shortened(message)),
        }
    }
}

/// The start of a long message: a compiler prints the whole kernel.
fn shortened(message: &str) -> String {
    const SHOWN: usize = 300;
    match message.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} ...", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checker() -> Checker {
        let (name, dtypes) = ("flex".to_owned(), vec![DType::F32]);
        Checker { device: Device::flex(), name, dtypes, json: None, findings: Vec::new() }
    }

    #[test]
    fn the_result_that_is_nearest_to_its_bound_decides() {
        let mut checker = checker();
        let differences = |error| {
            let output = Difference { of: "output", error: 0.5, bound: 1.0 };
            vec![output, Difference { of: "gradient of x", error, bound: 1e-3 }]
        };
        for error in [1e-4, 2e-3, f64::NAN] {
            checker.check("kernel", "case", DType::F32, |_| differences(error)).unwrap();
        }
        let passed: Vec<bool> = checker.findings.iter().map(Finding::passed).collect();
        assert_eq!(passed, [true, false, false]);
        let lines: Vec<String> = checker.findings.iter().map(|f| f.to_string()).collect();
        assert!(lines[0].ends_with("f32   5.0e-1 of 1.0e0 at most (output)"), "{}", lines[0]);
        assert!(lines[1].starts_with("FAIL kernel"), "{}", lines[1]);
        assert!(lines[1].ends_with("2.0e-3 of 1.0e-3 at most (gradient of x)"), "{}", lines[1]);
    }

    #[test]
    fn a_panic_fails_its_check_alone() {
        let mut checker = checker();
        checker.check("a", "", DType::F32, |_| panic!("no\n  memory")).unwrap();
        checker.check("b", "", DType::F32, |_| Vec::new()).unwrap();
        let exact = || vec![Difference { of: "output", error: 0.0, bound: 0.0 }];
        checker.check("c", "", DType::F32, |_| exact()).unwrap();
        let passed: Vec<bool> = checker.findings.iter().map(Finding::passed).collect();
        assert_eq!(passed, [false, false, true]);
        assert_eq!(checker.findings[0].to_json()["message"], "no memory");
        assert_eq!(checker.findings[2].to_json()["message"], Value::Null);
    }
}
