//! `doctor`, the checks of kernels, and the script that measures a device.

use std::process::Command;

use serde_json::Value;

use crate::sandbox::Sandbox;

fn json(sandbox: &Sandbox, name: &str) -> Value {
    serde_json::from_slice(&sandbox.read(name)).expect("JSON")
}

#[test]
fn doctor_says_what_is_missing_and_is_content() {
    let said = Sandbox::new().succeed(&["doctor"]);
    let line = |name: &str| {
        let found = said.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no line `{name}` in {said}")).to_owned()
    };
    assert!(line("flex   yes  float32, bfloat16; ").ends_with(" TFLOP/s"));
    let needs_remedy = |line: String| {
        let remedies = ["install ", "build ", "CUDA_VISIBLE_DEVICES"];
        assert!(line.contains(" yes ") || remedies.iter().any(|it| line.contains(it)), "{line}");
    };
    needs_remedy(line("cuda "));
    needs_remedy(line("nccl "));
}

#[test]
fn every_kernel_of_flex_is_right() {
    let sandbox = Sandbox::new();
    let said = sandbox.succeed(&["doctor", "--kernels", "flex", "--json", "kernels.json"]);
    let found = json(&sandbox, "kernels.json");
    let checks = found["checks"].as_array().expect("checks");
    assert!(checks.iter().all(|check| check["passed"] == true && check["message"].is_null()));
    for kernel in [
        "rms_norm",
        "rope",
        "swiglu",
        "embedding",
        "linear",
        "attention",
        "linear_cross_entropy",
        "adamw",
        "sum_of_squares",
        "quantize",
        "reduce_quantized",
        "reduce_chunks",
        "pack",
        "vocabulary",
    ] {
        for dtype in ["f32", "f16", "bf16"] {
            let of = |check: &&Value| check["kernel"] == kernel && check["dtype"] == dtype;
            assert!(checks.iter().filter(of).count() >= 2, "{kernel} in {dtype}");
        }
    }
    let sum = format!("{0} of {0} checks passed on flex", checks.len());
    assert_eq!(said.lines().last(), Some(sum.as_str()));
    assert_eq!(said.lines().filter(|line| line.starts_with("ok  ")).count(), checks.len());
}

#[test]
fn kernels_of_no_device_are_refused() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(&["doctor", "--kernels", "tpu"]);
    assert_eq!(ended.code, Some(2));
    assert_eq!(ended.stderr, "error: --device: expected flex, wgpu or cuda, found `tpu`\n");
}

/// Two runs of one seed have the same losses; of two seeds they have not.
#[test]
fn losses_are_compared_step_by_step() {
    let sandbox = Sandbox::new();
    let train = |out: &str, seed: &str| {
        let (out, seed) = (format!("run.output_dir={out}"), format!("training.seed={seed}"));
        let plain = ["checkpoint.enable=false", "validation.enable=false"];
        sandbox.succeed(&[&["train", "run.yaml", &out, &seed], &plain[..]].concat());
    };
    train("a", "1");
    train("b", "1");
    train("c", "2");
    let said = sandbox.succeed(&["bench", "compare", "a", "b", "--json", "same.json"]);
    assert_eq!(said, "4 steps: losses differ by 0.00e0 at most (step 4), and may by 1.00e-4\n");
    let same = json(&sandbox, "same.json");
    assert_eq!([&same["passed"], &same["steps"]], [&Value::from(true), &Value::from(4)]);
    let ended = sandbox.run(&["bench", "compare", "a", "c", "--within", "1e-6"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(": the losses of the two runs differ by "), "{}", ended.stderr);
    let ended = sandbox.run(&["bench", "compare", "a", "nowhere"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("nowhere/metrics.jsonl"), "{}", ended.stderr);
}

/// The whole script on flex, and what it makes of a step that fails.
#[test]
#[cfg(target_os = "linux")]
fn gpu_check_measures_flex() {
    let sandbox = Sandbox::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/gpu-check");
    let out = sandbox.path("measured");
    let ended = Command::new(script)
        .arg(env!("CARGO_BIN_EXE_burn-titan"))
        .arg(&out)
        .args(["--device", "flex", "--quick"])
        // No PyTorch: its numbers are not what is tested.
        .env("PYTHON", "/nonexistent/python")
        .output()
        .expect("bash runs the script");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    let report = json(&sandbox, "measured/report.json");
    let steps = report["steps"].as_array().expect("steps");
    assert!(steps.len() >= 20 && steps.iter().all(|step| step["exit_code"] == 0), "{said}");
    for part in ["kernels", "debug-f32", "debug-bf16", "fsdp-2", "tp-2", "pp-2", "cp-2", "cp-pp-4"]
    {
        assert!(report["parts"][part].is_object(), "{part}");
    }
    let page = String::from_utf8(sandbox.read("measured/report.md")).expect("text");
    for heading in ["## Kernels", "## Training steps", "## Operations", "| tp-2 | 5 | "] {
        assert!(page.contains(heading), "no {heading} in {page}");
    }
}
