//! The wgpu device trains as flex does. The only test of this file: compiling its shaders takes a
//! while, and the adapter may be a software one that uses every core.

use std::env;
use std::time::Instant;

use burn_titan_kernels::device;
use burn_titan_tests::runs::{Run, repository};

/// Set to `1` where a missing adapter must be a failure, as in CI.
const REQUIRED: &str = "BURN_TITAN_REQUIRE_WGPU";

#[test]
fn wgpu_follows_flex() {
    if let Err(error) = device::wgpu() {
        let required = env::var(REQUIRED).is_ok_and(|value| value == "1");
        assert!(!required, "{REQUIRED}=1, but {error}");
        println!("skipped, {REQUIRED}=1 makes it a failure: {error}");
        return;
    }
    let config = repository().join("configs/llama3_wgpu_ci.yaml");
    let config = std::fs::read_to_string(&config).expect("the config is in the repository");
    let losses = |(kind, ranks, offload): (&str, usize, bool)| {
        let run = Run::new(&config);
        // Three sequences a step, whoever reads them.
        let words = [
            &format!("training.device={kind}"),
            &format!("training.enable_cpu_offload={offload}"),
            &format!("training.local_batch_size={}", 3 / ranks),
            "run.output_dir=HERE/out",
            "data.train.0.path=DATA/shakespeare/train.jsonl",
            "data.tokenizer=DATA/tokenizer.json",
            "metrics.peak_tflops=1",
        ];
        let start = Instant::now();
        run.simulate(ranks, &words);
        let steps: Vec<String> =
            run.metrics().iter().map(|m| format!("{:.2}", m.step_seconds)).collect();
        println!(
            "{kind}, {ranks} ranks: {:.1} s, steps {}",
            start.elapsed().as_secs_f64(),
            steps.join(" ")
        );
        run.losses()
    };
    let flex = losses(("flex", 1, false));
    // Parameters, gradients and moments on the device, shared by ranks, and on the host.
    for how in [("wgpu", 1, false), ("wgpu", 3, false), ("wgpu", 3, true)] {
        let wgpu = losses(how);
        assert_eq!((flex.len(), wgpu.len()), (5, 5));
        for (step, (flex, wgpu)) in flex.iter().zip(&wgpu).enumerate() {
            println!("step {}: flex {flex:.6}, difference {:.1e}", step + 1, (flex - wgpu).abs());
            assert!((flex - wgpu).abs() < 1e-4, "{how:?}, step {}: {flex} {wgpu}", step + 1);
        }
    }
}
