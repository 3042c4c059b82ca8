//! `train`, what it leaves behind, and how it ends; small commands beside it.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use burn_titan_core::metrics::read_metrics;
use serde_json::Value;

use crate::sandbox::Sandbox;

/// Step, and the bits of loss and gradient norm, of every row of `metrics.jsonl`.
fn curve(sandbox: &Sandbox) -> Vec<(u64, u64, u64)> {
    let rows = read_metrics(&sandbox.path("out/metrics.jsonl")).unwrap_or_default();
    rows.iter().map(|m| (m.step, m.loss.to_bits(), m.grad_norm.to_bits())).collect()
}

#[test]
fn a_run_leaves_what_the_manual_says() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(&["train", "run.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let rows = read_metrics(&sandbox.path("out/metrics.jsonl")).unwrap_or_default();
    assert_eq!(rows.len(), 4);
    let (loss, validation) = (rows[3].loss, rows[3].validation_loss.unwrap_or(f64::NAN));
    assert_eq!(
        ended.stdout,
        format!("4 steps; loss {loss:.4}, validation loss {validation:.4}; see out\n")
    );
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines[0], "llama3 debug (336,192 parameters) on flex: starts, writing to out");
    assert!(lines[1].starts_with(&format!("step 1/4  loss {:.4}  grad ", rows[0].loss)));
    assert!(lines.contains(&"saved out/checkpoint/step-00000002"), "{}", ended.stderr);
    let text = String::from_utf8(sandbox.read("out/metrics.jsonl")).expect("JSON is text");
    let row: Value = serde_json::from_str(text.lines().next().unwrap_or("")).expect("a row");
    let keys: Vec<&str> = row.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
    let expected = "step loss grad_norm lr tokens_per_second tflops mfu memory_gib data_seconds \
                    step_seconds";
    assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
    assert!(sandbox.read("out/loss.svg").starts_with(b"<svg"));
    let events = std::fs::read_dir(sandbox.path("out/tensorboard")).expect("the folder is there");
    assert_eq!(events.count(), 1);
    for file in ["index.json", "model.safetensors", "optimizer.safetensors", "state.json"] {
        assert!(sandbox.path("out/checkpoint/step-00000004").join(file).is_file(), "{file}");
    }
    // The resolved config is a config.
    assert_eq!(
        sandbox.succeed(&["validate", "out/config.yaml"]),
        "out/config.yaml: sound; llama3 debug with 336192 parameters, 4 optimizer steps\n"
    );
    assert_eq!(
        sandbox.succeed(&["train", "out/config.yaml"]),
        "the run is complete: 4 of 4 steps were done before; raise training.steps to go on, or see out\n"
    );
    assert_eq!(curve(&sandbox).len(), 4);
}

/// `eval` of the last checkpoint is the last validation.
#[test]
fn eval_agrees_with_validation() {
    let sandbox = Sandbox::new();
    sandbox.succeed(&["train", "run.yaml", "validation.steps=0"]);
    let rows = read_metrics(&sandbox.path("out/metrics.jsonl")).unwrap_or_default();
    let validated = rows.last().and_then(|row| row.validation_loss).expect("it was measured");
    let printed = sandbox.succeed(&["eval", "--checkpoint", "out", "--data", "data.jsonl"]);
    let result: Value = serde_json::from_str(&printed).expect("eval prints JSON");
    assert_eq!(result["loss"].as_f64().map(f64::to_bits), Some(validated.to_bits()));
    assert!(result["tokens"].as_u64().is_some_and(|tokens| tokens > 400));
}

/// A process that is killed at any moment loses no step.
#[test]
fn a_killed_run_continues() {
    let words = ["train", "run.yaml", "training.steps=80", "checkpoint.interval=20"];
    let [straight, killed] = [Sandbox::new(), Sandbox::new()];
    straight.succeed(&words);
    let mut child = killed.command(&words).spawn().expect("the binary runs");
    while !killed.path("out/checkpoint/step-00000020").exists() {
        assert!(child.try_wait().expect("the process can be asked").is_none(), "it ended early");
        sleep(Duration::from_millis(2));
    }
    child.kill().expect("the process can be killed");
    child.wait().expect("the process ends");
    assert!(curve(&killed).len() < 80, "it was killed too late to tell");
    let ended = killed.run(&words);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let first = ended.stderr.lines().next().unwrap_or("");
    assert!(first.contains(": continues from out/checkpoint/step-000000"), "{first}");
    assert_eq!(curve(&killed), curve(&straight));
    let model = "out/checkpoint/step-00000080/model.safetensors";
    assert!(killed.read(model) == straight.read(model));
}

/// What goes wrong in the run, not in what the user gave, ends with 1.
#[test]
fn a_step_that_is_not_finite_ends_with_1() {
    let sandbox = Sandbox::new();
    let words = ["train", "run.yaml", "optimizer.lr=1e30", "lr_scheduler.warmup_steps=0"];
    let ended = sandbox.run(&words);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or("");
    assert!(last.starts_with("error: step 2: the "), "{last}");
    assert!(last.contains(" unit `") && last.contains(" (documents: data.jsonl: line "), "{last}");
    let remedy = "): lower optimizer.lr, look at the documents, or set training.on_non_finite=skip";
    assert!(last.ends_with(remedy), "{last}");
    let skipping = Sandbox::new();
    let ended = skipping.run(&[&words[..], &["training.on_non_finite=skip"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("): the step is skipped\n"), "{}", ended.stderr);
}

/// `burn-titan schema | head` and the like.
#[test]
fn a_closed_pipe_is_no_error() {
    let sandbox = Sandbox::trained();
    let commands: [&[&str]; 3] = [
        &["schema"],
        &["schema", "--markdown"],
        &["generate", "--checkpoint", "out", "--prompt", "To be"],
    ];
    for arguments in commands {
        let (reader, writer) = io::pipe().expect("a pipe can be made");
        drop(reader);
        let output = sandbox.command(arguments).stdout(writer).output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.as_ref()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn small_commands() {
    let sandbox = Sandbox::new();
    let schema: Value =
        serde_json::from_str(&sandbox.succeed(&["schema"])).expect("the schema is JSON");
    assert!(schema["properties"]["training"].is_object() || schema["$defs"].is_object());
    let printed = sandbox.succeed(&[
        "tokenizer",
        "train",
        "--vocab-size",
        "300",
        "--out",
        "small.json",
        "data.jsonl",
    ]);
    assert_eq!(printed, "small.json: 300 tokens\n");
    let words = ["data.tokenizer=small.json", "model.overrides.vocab_size=300"];
    sandbox.succeed(&[&["train", "run.yaml"], &words[..]].concat());
}
