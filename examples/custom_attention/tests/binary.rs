//! The example as a user runs it: through its binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn_titan_core::checkpoint::TensorFile;
use serde_json::Value;
use tempfile::TempDir;

/// As in `src/main.rs`.
const WINDOW: usize = 32;

/// Runs the binary in the top folder of the repository, as the README does.
fn run(arguments: &[&str]) -> Output {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_custom_attention"));
    command.args(arguments).current_dir(top).output().expect("the binary runs")
}

fn succeed(arguments: &[&str]) {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
}

/// A run of the example's config with these words put into it; its output goes with the value.
struct Run(TempDir);

impl Run {
    fn new(words: &[&str]) -> Self {
        let run = Self(tempfile::tempdir().expect("a temporary folder can be made"));
        let output = format!("run.output_dir={}", run.path("out").display());
        let config = "examples/custom_attention/config.yaml";
        succeed(&[&["train", config, &output], words].concat());
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The logits of `data`, one row of the vocabulary a token, as `eval` with `option` reads it.
    fn logits(&self, option: &str, data: &str) -> Vec<Vec<f32>> {
        let path = |name| self.path(name).display().to_string();
        let (checkpoint, input, output) = (path("out"), path("data.json"), path("logits"));
        fs::write(&input, data).expect("the temporary folder can be written");
        let words = ["eval", "--checkpoint", &checkpoint, option, &input, "--logits", &output];
        let format: &[&str] = if option == "--data" { &["--format", "jsonl"] } else { &[] };
        succeed(&[&words[..], format].concat());
        let file = TensorFile::open(Path::new(&output)).expect("a tensor file");
        let logits = file.view("logits").expect("the logits").to_tensor();
        let vocabulary = *logits.shape().last().expect("a vocabulary");
        let values = logits.to_f32().expect("f32");
        values.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect()
    }
}

#[test]
fn trains_for_ten_steps() {
    let run = Run::new(&["training.steps=10", "checkpoint.enable=false"]);
    let metrics = fs::read_to_string(run.path("out/metrics.jsonl")).expect("metrics");
    let losses: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64())
        .map(|loss| loss.expect("a loss"))
        .collect();
    assert_eq!(losses.len(), 10);
    assert!(losses[9] < losses[0] - 0.5, "{losses:?}");
}

fn losses(run: &Run) -> Vec<f64> {
    let metrics = fs::read_to_string(run.path("out/metrics.jsonl")).expect("metrics");
    let loss = |line| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64();
    metrics.lines().map(|line| loss(line).expect("a loss")).collect()
}

/// The module knows of no ranks: how its heads lie in its parameters is told from their shapes.
#[test]
fn splits_over_ranks_as_it_is() {
    let words = ["training.steps=5", "lr_scheduler.warmup_steps=2", "checkpoint.enable=false"];
    let batch = ["training.local_batch_size=2", "training.global_batch_size=4"];
    let one = losses(&Run::new(&[&words[..], &batch].concat()));
    assert_eq!(one.len(), 5);
    for split in [
        &["--simulate", "2", "parallelism.tensor_parallel_degree=2"][..],
        &["--simulate", "4", "parallelism.tensor_parallel_degree=2"],
    ] {
        let found = losses(&Run::new(&[&words[..], &batch, split].concat()));
        for (a, b) in one.iter().zip(&found) {
            assert!(((a - b) / a).abs() < 1e-6, "{split:?}: {one:?} {found:?}");
        }
    }
}

#[test]
fn shared_sequences_are_refused() {
    let config = "examples/custom_attention/config.yaml";
    let output = run(&["validate", config, "parallelism.context_parallel_degree=2"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let reason = "`parallelism.context_parallel_degree` is 2, but the attention `sliding_window` sees \
                  only the keys of its own rank";
    assert!(stderr.contains(reason), "{stderr}");
}

/// The positions at which two evaluations differ.
fn changed(a: &[Vec<f32>], b: &[Vec<f32>]) -> Vec<usize> {
    assert_eq!(a.len(), b.len());
    (0..a.len()).filter(|i| a[*i] != b[*i]).collect()
}

/// With one layer, a token's logits are a function of what it sees.
#[test]
fn a_token_sees_the_last_tokens_of_its_document() {
    let run = Run::new(&["training.steps=3", "model.overrides.n_layers=1", "training.seq_len=64"]);

    // The first token of a long document is seen by as many tokens as the window has.
    let sequence =
        |first| format!("[{:?}]", (first..first + 1).chain(100..147).collect::<Vec<_>>());
    let [a, b] = [7, 8].map(|first| run.logits("--token-ids", &sequence(first)));
    assert_eq!(a.len(), 48);
    assert_eq!(changed(&a, &b), (0..WINDOW).collect::<Vec<_>>());

    // Two short documents share a row: the second, all in the first's window, sees nothing of it.
    let documents = |first| {
        let second = "What's done cannot be undone. To bed, to bed, to bed!";
        format!("{{\"text\": \"{first}\"}}\n{{\"text\": \"{second}\"}}\n")
    };
    let [a, b] = ["7", "8"].map(|first| run.logits("--data", &documents(first)));
    // The beginning of the document, the digit, and the end of the document.
    assert_eq!(changed(&a, &b), [1, 2]);
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let config = "examples/custom_attention/config.yaml";
    let output = run(&["validate", config, "model.attention=linear"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no attention module is registered as `linear`"), "{stderr}");
    assert!(stderr.contains("fused") && stderr.contains("sliding_window"), "{stderr}");
}
