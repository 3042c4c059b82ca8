//! `plan`: what a step takes, for any number of ranks, on any machine.

use std::time::Instant;

use serde_json::Value;

use crate::sandbox::Sandbox;

const HSDP: [&str; 2] =
    ["parallelism.data_parallel_replicate_degree=2", "activation_checkpoint.mode=full"];

#[test]
fn the_text_of_a_small_run() {
    let text = Sandbox::new().succeed(&[&["plan", "run.yaml", "--ranks", "4"], &HSDP[..]].concat());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "llama3 debug: 336,192 parameters in 4 units, on 4 ranks");
    let starts = [
        "dp_replicate         2   each has a copy of the model",
        "dp_shard             2   share parameters, gradients and optimizer state",
        "step: 1 micro-batch of 2 x 32 tokens a rank, 256 tokens together; ",
        "parameters                 656.6 KiB     656.6 KiB",
        "optimizer state              1.3 MiB       1.3 MiB",
        "peak   ",
        "sent by a rank",
        "dp_shard ",
        "dp_replicate ",
        "all ",
    ];
    for start in starts {
        assert!(lines.iter().any(|line| line.starts_with(start)), "no `{start}` in\n{text}");
    }
    let peak = lines.iter().find(|line| line.starts_with("peak ")).expect("a peak");
    assert!(peak.contains("at action "), "{peak}");
}

/// The axes along which a model is split, with what a rank sends along each.
#[test]
fn the_text_of_a_split_model() {
    let words = [
        "plan",
        "run.yaml",
        "parallelism.tensor_parallel_degree=4",
        "parallelism.context_parallel_degree=2",
    ];
    let text = Sandbox::new().succeed(&words);
    let sent = text.split_once("sent by a rank").map(|(_, sent)| sent).unwrap_or_default();
    let axes: Vec<&str> =
        sent.lines().skip(1).filter_map(|line| line.split("  ").next()).take(6).collect();
    // Two ranks have the same of the two key heads.
    assert_eq!(axes, ["dp_shard", "tp", "tp (heads)", "cp", "norm", "all"], "{text}");
}

#[test]
fn json_holds_the_numbers() {
    let sandbox = Sandbox::new();
    let plan = |words: &[&str]| -> Value {
        let words = [&["plan", "run.yaml", "--json"], words].concat();
        serde_json::from_str(&sandbox.succeed(&words)).expect("JSON")
    };
    // Without a number it is for the ranks that the degrees make.
    let two = plan(&["parallelism.data_parallel_replicate_degree=2"]);
    assert_eq!((&two["ranks"], &two["model"]["parameters"]), (&2.into(), &336_192.into()));
    let number = |value: &Value| value.as_u64().expect("a count");
    let four = plan(&["--ranks", "4"]);
    let memory = &four["memory"];
    assert_eq!(number(&memory["most"]["parameters"]), 336_192);
    assert_eq!(number(&memory["most"]["optimizer_state"]), 2 * 336_192);
    let parts = memory["peak"]["memory"].as_object().expect("purposes");
    assert_eq!(parts.values().map(number).sum::<u64>(), number(&memory["peak"]["bytes"]));
    // Every unit is gathered once and reduced once, of which a rank sends three quarters.
    assert_eq!(four["sent"][0]["axis"], "dp_shard");
    let bytes = number(&four["sent"][0]["bytes"]);
    assert_eq!(bytes, 2 * 3 * 336_192);
    assert_eq!((&four["sent"][1]["axis"], &four["sent"][1]["bytes"]), (&"norm".into(), &12.into()));
    let full = plan(&["--ranks", "4", HSDP[1]]);
    assert!(number(&full["memory"]["peak"]["bytes"]) < number(&memory["peak"]["bytes"]));
}

#[test]
fn the_largest_model_on_many_ranks_takes_no_time() {
    let sandbox = Sandbox::new();
    let config = "model: {flavor: 405b}\ndata: {train: [{path: tokens.bin}]}\n\
        training: {device: wgpu, seq_len: 8192, local_batch_size: 1}\n\
        activation_checkpoint: {mode: full}\n";
    sandbox.write("large.yaml", config.as_bytes());
    for ranks in ["1024", "16384"] {
        let start = Instant::now();
        let text = sandbox.succeed(&["plan", "large.yaml", "--ranks", ranks]);
        let seconds = start.elapsed().as_secs_f64();
        assert!(text.starts_with("llama3 405b: 405,853,388,800 parameters in 128 units"), "{text}");
        assert!(seconds < 2.0, "{seconds} s");
        sandbox.succeed(&["validate", "large.yaml", "--ranks", ranks]);
    }
}

/// 16 stages of 128 ranks, of which 64 have all experts together.
#[test]
fn experts_on_two_thousand_gpus() {
    let sandbox = Sandbox::new();
    let config = "model: {name: deepseek_v3, flavor: 671b}\ndata: {train: [{path: tokens.bin}]}\n\
        training: {device: cuda, seq_len: 4096, local_batch_size: 1, global_batch_size: 15360}\n\
        precision: {compute: bfloat16}\nactivation_checkpoint: {mode: full}\n\
        parallelism: {pipeline_parallel_degree: 16, pipeline_parallel_schedule: dualpipev, \
        expert_parallel_degree: 64}\n";
    sandbox.write("experts.yaml", config.as_bytes());
    let words = ["plan", "experts.yaml", "--ranks", "2048", "--hardware", "h100"];
    let start = Instant::now();
    let text = sandbox.succeed(&words);
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 5.0, "{seconds} s");
    let plan: Value =
        serde_json::from_str(&sandbox.succeed(&[&words[..], &["--json"]].concat())).expect("JSON");
    let axis = |name: &str| {
        let sent = plan["sent"].as_array().expect("axes").iter();
        let sent = sent.filter(|sent| sent["axis"] == name).collect::<Vec<_>>();
        (sent[0]["ranks"].as_u64().expect("ranks"), sent[0]["bytes"].as_u64().expect("bytes"))
    };
    assert_eq!((axis("ep").0, axis("ep_shard").0, axis("dp_shard").0), (64, 2, 128), "{text}");
    assert!(plan["pipeline"]["bubble"].as_f64().expect("a bubble") < 0.5, "{text}");
    // The router sends an eighth of 8 rows a token to every eighth of the ranks: each layer's rows leave the rank twice
    // in the forward, which is run again, and twice in the backward.
    let (layers, micro_batches) = (4.0, 120.0);
    let rows = 4096.0 * 8.0 * 7168.0 * 2.0 * 63.0 / 64.0;
    let share = axis("ep").1 as f64 / (layers * micro_batches * rows * 6.0);
    assert!((0.9..1.1).contains(&share), "{share}\n{text}");
    let estimate = &plan["estimate"];
    assert_eq!(estimate["hardware"]["name"], "h100");
    let fits = plan["memory"]["peak"]["bytes"].as_u64() <= estimate["hardware"]["memory"].as_u64();
    assert_eq!(estimate["fits"], fits, "{text}");
    let place = |axis: &str| text.lines().rfind(|line| line.starts_with(axis));
    assert!(place("ep ").expect("ep").ends_with("s between hosts"), "{text}");
    let ended = sandbox.run(&["plan", "experts.yaml", "--hardware", "abacus"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("no hardware is named `abacus`: there are a100"),
        "{}",
        ended.stderr
    );
}

#[test]
fn ranks_that_make_no_mesh_are_refused() {
    let ended = Sandbox::new().run(&[&["plan", "run.yaml", "--ranks", "3"], &HSDP[..]].concat());
    assert_eq!(ended.code, Some(2));
    let expected =
        "error: 3 ranks do not divide by 2, so that data_parallel_shard_degree = -1 has no value";
    assert_eq!(ended.stderr.lines().next(), Some(expected));
    let ended = Sandbox::new().run(&["plan", "run.yaml", "--ranks", "0"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}
