//! Training by ranks that are processes: the numbers, signals, and communication behind computation.

use std::time::Duration;

use burn_titan_core::metrics::read_metrics;
use serde_json::Value;

use crate::sandbox::Sandbox;

/// Every way to spread the data over ranks.
const CASES: [(usize, &[&str]); 9] = [
    (2, &[DDP, "parallelism.data_parallel_replicate_degree=2"]),
    (4, &[DDP, "parallelism.data_parallel_replicate_degree=4"]),
    (2, &[]),
    (3, &[]),
    (4, &[]),
    (4, &["parallelism.data_parallel_replicate_degree=2"]),
    (2, &[NEVER, LAST]),
    (2, &[NEVER]),
    (2, &[LAST]),
];

const DDP: &str = "parallelism.data_parallel_shard_degree=1";
const NEVER: &str = "parallelism.fsdp_reshard_after_forward=never";
const LAST: &str = "parallelism.reduce_every_micro_batch=false";

/// A size in which nothing divides.
const ODD: [&str; 3] = [
    "model.overrides={n_layers: 2, dim: 60, n_heads: 6, n_kv_heads: 3, head_dim: 10, ffn_dim: 77, \
     vocab_size: 331}",
    "data={train: [{path: tokens.bin}]}",
    "training.seq_len=37",
];

/// Step, and the bits of loss and gradient norm, of every row of `metrics.jsonl`.
fn curve(sandbox: &Sandbox) -> Vec<(u64, u64, u64)> {
    let rows = read_metrics(&sandbox.path("out/metrics.jsonl")).unwrap_or_default();
    rows.iter().map(|m| (m.step, m.loss.to_bits(), m.grad_norm.to_bits())).collect()
}

/// Twelve experts of which a token meets three.
pub const EXPERTS: &str = "model={name: qwen3_moe, overrides: {n_layers: 2, dim: 36, n_heads: 6, n_kv_heads: 3, \
    head_dim: 10, n_experts: 12, top_k: 3, expert_dim: 37, vocab_size: 331, sequence_balance_loss: 0.1}}";

/// A dense block, and one of experts beside one that all tokens meet.
const SHARED_EXPERTS: &str = "model={name: deepseek_v3, overrides: {n_layers: 2, dim: 44, n_heads: 6, \
    q_lora_rank: 19, kv_lora_rank: 13, qk_nope_head_dim: 7, qk_rope_head_dim: 6, v_head_dim: 9, ffn_dim: 77, \
    n_experts: 12, top_k: 3, expert_dim: 37, n_groups: 3, vocab_size: 331}}";

/// Threads are held against one rank in tests of their own; processes give the same bits as threads.
fn processes_and_threads_agree(model: &[&str]) {
    let common = [
        "training.steps=20",
        "training.local_batch_size=1",
        "checkpoint.enable=false",
        "validation.enable=false",
        "metrics.tensorboard=false",
    ];
    for micro_batches in [1, 3] {
        for mode in ["none", "full"] {
            for (ranks, case) in CASES {
                let global = format!("training.global_batch_size={}", ranks * micro_batches);
                let mode = format!("activation_checkpoint.mode={mode}");
                let own = [global.as_str(), mode.as_str()];
                let words = [&["train", "run.yaml"], &common[..], model, case, &own].concat();
                let curves = ["--ranks", "--simulate"].map(|how| {
                    let sandbox = Sandbox::new();
                    sandbox.succeed(&[&words[..], &[how, &ranks.to_string()]].concat());
                    curve(&sandbox)
                });
                assert_eq!(curves[0].len(), 20);
                assert_eq!(curves[0], curves[1], "{words:?} on {ranks} ranks");
            }
        }
    }
}

#[test]
fn round_sizes() {
    processes_and_threads_agree(&[]);
}

#[test]
fn odd_sizes() {
    processes_and_threads_agree(&ODD);
}

/// Ranks that split the model exchange in the middle of forwards and backwards.
#[test]
fn split_models() {
    const TP2: &str = "parallelism.tensor_parallel_degree=2";
    const CP2: &str = "parallelism.context_parallel_degree=2";
    const GATHER: &str = "parallelism.context_parallel_method=all_gather";
    const NO_SP: &str = "parallelism.enable_sequence_parallel=false";
    const CHUNKS: &str = "parallelism.async_tensor_parallel_chunks=3";
    const PP2: &str = "parallelism.pipeline_parallel_degree=2";
    const ZB: &str = "parallelism.pipeline_parallel_schedule=zb1p";
    const EIGHT: &str = "training.global_batch_size=8";
    const EP2: &str = "parallelism.expert_parallel_degree=2";
    const EP4: &str = "parallelism.expert_parallel_degree=4";
    let cases: [(usize, &[&str]); 9] = [
        (4, &[EXPERTS, TP2, EP4]),
        (4, &[SHARED_EXPERTS, PP2, EP2, EIGHT]),
        (2, &[PP2, ZB, EIGHT]),
        (4, &[PP2, TP2, EIGHT]),
        (2, &[TP2, CHUNKS]),
        (3, &["parallelism.context_parallel_degree=3"]),
        (4, &[TP2, NO_SP]),
        (4, &[TP2, CP2]),
        (4, &[CP2, GATHER]),
    ];
    let common = ["train", "run.yaml", "training.steps=20", "checkpoint.enable=false"];
    let common = [&common[..], &["validation.enable=false", "metrics.tensorboard=false"]].concat();
    for (ranks, case) in cases {
        let words = [&common[..], &ODD, case, &["activation_checkpoint.mode=full"]].concat();
        let curves = ["--ranks", "--simulate"].map(|how| {
            let sandbox = Sandbox::new();
            sandbox.succeed(&[&words[..], &[how, &ranks.to_string()]].concat());
            curve(&sandbox)
        });
        assert_eq!(curves[0].len(), 20);
        assert_eq!(curves[0], curves[1], "{case:?} on {ranks} ranks");
    }
}

/// SIGTERM, and Slurm's SIGUSR1, end a run of any number of ranks with a checkpoint, from which it goes on as if
/// nothing had happened.
#[cfg(unix)]
#[test]
fn a_signal_stops_after_a_checkpoint() {
    let straight = Sandbox::new();
    let words = ["train", "run.yaml", "training.steps=600", "checkpoint.interval=1000"];
    let words = [&words[..], &["validation.enable=false"]].concat();
    straight.succeed(&[&words[..], &["--simulate", "2"]].concat());
    for (signal, how) in [("TERM", "--ranks"), ("USR1", "--ranks"), ("TERM", "--simulate")] {
        let sandbox = Sandbox::new();
        let words = [&words[..], &[how, "2"]].concat();
        let mut command = sandbox.command(&words);
        let child = command.stderr(std::process::Stdio::piped()).spawn().expect("the binary runs");
        while curve(&sandbox).len() < 3 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let kill = format!("kill -{signal} {}", child.id());
        let sent = std::process::Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{kill}");
        let output = child.wait_with_output().expect("the process ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(143), "{signal} {how}: {stderr}");
        let done = curve(&sandbox).len();
        assert!(done < 600, "it was stopped too late to tell");
        let told =
            format!("stopped by a signal after step {done}: the same command continues from");
        assert!(stderr.contains(&told), "{signal} {how}: {stderr}");
        let folder = format!("out/checkpoint/step-{done:08}");
        assert!(sandbox.path(&folder).join("index.json").is_file(), "{folder}");
        sandbox.succeed(&words);
        assert_eq!(curve(&sandbox), curve(&straight), "{signal} {how}");
    }
}

/// Milliseconds of the longest rank, of its computation, and of its exchanges.
fn traced(sandbox: &Sandbox) -> [f64; 3] {
    let file = "out/trace/step-00000004-rank-00000.json";
    let trace: Value = serde_json::from_slice(&sandbox.read(file)).expect("a trace is JSON");
    let events = trace["traceEvents"].as_array().cloned().unwrap_or_default();
    let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    let number = |event: &Value, key: &str| event[key].as_f64().unwrap_or(f64::NAN);
    let is = |event: &Value, names: &[&str]| {
        let name = event["name"].as_str().unwrap_or("");
        names.iter().any(|start| name.starts_with(start))
    };
    let sum = |names: &[&str]| {
        spans.iter().filter(|e| is(e, names)).map(|e| number(e, "dur")).sum::<f64>() / 1e3
    };
    let end = spans.iter().map(|e| number(e, "ts") + number(e, "dur")).fold(0.0, f64::max);
    [end / 1e3, sum(&["Forward", "Backward", "OptimizerStep"]), sum(&["operation"])]
}

/// On a slow link, a step takes little longer than what takes longest in it, computation or communication.
#[test]
fn communication_hides_behind_computation() {
    let words = [
        "train",
        "run.yaml",
        "--ranks",
        "2",
        "debug.link_mbit_per_second=200",
        "debug.trace_step=4",
        "model.overrides={n_layers: 8, dim: 128, n_heads: 4, n_kv_heads: 2, head_dim: 32, ffn_dim: 384, \
         vocab_size: 331}",
        "data={train: [{path: tokens.bin}]}",
        "training.seq_len=256",
        "training.local_batch_size=12",
        "checkpoint.enable=false",
        "validation.enable=false",
    ];
    // Whatever else runs on the machine may disturb it.
    let mut ratios = vec![];
    for _ in 0..5 {
        let sandbox = Sandbox::new();
        sandbox.succeed(&words);
        let [step, compute, exchange] = traced(&sandbox);
        println!("step {step:.0} ms, computation {compute:.0}, communication {exchange:.0}");
        assert!(exchange > 40.0, "there is nothing to hide");
        ratios.push(step / compute.max(exchange));
        if ratios.iter().any(|ratio| *ratio <= 1.15) {
            return;
        }
    }
    panic!("a step is {ratios:?} times its longer part");
}
