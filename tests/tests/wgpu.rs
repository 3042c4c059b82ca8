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
    let losses = |(kind, ranks, offload, split): (&str, usize, bool, &[&str])| {
        let run = Run::new(&config);
        // Three sequences a step, whoever reads them.
        let words = [
            &format!("training.device={kind}"),
            &format!("training.enable_cpu_offload={offload}"),
            &format!("training.local_batch_size={}", if split.is_empty() { 3 / ranks } else { 3 }),
            "run.output_dir=HERE/out",
            "data.train.0.path=DATA/shakespeare/train.jsonl",
            "data.tokenizer=DATA/tokenizer.json",
            "metrics.peak_tflops=1",
        ];
        let start = Instant::now();
        run.simulate(ranks, &[&words[..], split].concat());
        let steps: Vec<String> =
            run.metrics().iter().map(|m| format!("{:.2}", m.step_seconds)).collect();
        println!(
            "{kind}, {ranks} ranks: {:.1} s, steps {}",
            start.elapsed().as_secs_f64(),
            steps.join(" ")
        );
        run.losses()
    };
    let flex = losses(("flex", 1, false, &[]));
    let tp = ["parallelism.tensor_parallel_degree=2"];
    let cp = ["parallelism.context_parallel_degree=2"];
    let pp = [
        "parallelism.pipeline_parallel_degree=2",
        "parallelism.pipeline_parallel_schedule=zb1p",
        "training.local_batch_size=1",
        "training.global_batch_size=3",
    ];
    // Parameters, gradients and moments on the device, shared by ranks, and on the host; then matrix products and
    // sequences shared by ranks, and blocks.
    let ways: [(_, _, _, &[&str]); 6] = [
        ("wgpu", 1, false, &[]),
        ("wgpu", 3, false, &[]),
        ("wgpu", 3, true, &[]),
        ("wgpu", 2, false, &tp),
        ("wgpu", 2, false, &cp),
        ("wgpu", 2, false, &pp),
    ];
    for how in ways {
        assert_close(&format!("{how:?}"), &flex, &losses(how));
    }
    let experts = "model={name: qwen3_moe, overrides: {n_layers: 2, dim: 64, n_heads: 4, n_kv_heads: 2, \
                   head_dim: 16, n_experts: 6, top_k: 2, expert_dim: 40, sequence_balance_loss: 0.1}}";
    let dealt = [experts, "parallelism.expert_parallel_degree=3", "training.local_batch_size=1"];
    let flex = losses(("flex", 1, false, &[experts]));
    assert_close("experts", &flex, &losses(("wgpu", 1, false, &[experts])));
    assert_close("dealt experts", &flex, &losses(("wgpu", 3, false, &dealt)));
}

fn assert_close(name: &str, flex: &[f64], wgpu: &[f64]) {
    assert_eq!((flex.len(), wgpu.len()), (5, 5), "{name}");
    for (step, (flex, wgpu)) in flex.iter().zip(wgpu).enumerate() {
        println!("step {}: flex {flex:.6}, difference {:.1e}", step + 1, (flex - wgpu).abs());
        assert!((flex - wgpu).abs() < 1e-4, "{name}, step {}: {flex} {wgpu}", step + 1);
    }
}
