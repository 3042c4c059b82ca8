//! A run that was interrupted ends as one that was not.

use std::fs::{self, File};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use burn_titan_core::inference::{LoadedModel, convert::to_hf};
use burn_titan_core::model::{Context, Registry};
use burn_titan_core::trainer::{prepare, train};
use burn_titan_models::{Attention, AttentionConfig, FusedAttention, Llama3};
use burn_titan_parallel::World;
use burn_titan_tests::runs::{ODD_VOCABULARY, Run, SMALL, random_tokens, tensor_file};

const MUON: [&str; 3] = [
    "optimizer.name=muon",
    "optimizer.lr=0.02",
    "optimizer.groups=[{pattern: \"{tok_embeddings,output}.weight\", name: adamw, lr: 1e-3}, \
     {pattern: \"**.{norm,attention_norm,ffn_norm}.weight\", name: adamw, lr: 1e-3}]",
];

/// Two sources of different kinds, shuffled in small blocks, two micro-batches a step.
const MIXED: [&str; 3] = [
    "data.train=[{path: DATA/shakespeare/validation.jsonl, weight: 3}, {path: HERE/tokens.bin}]",
    "data.shuffle_buffer=50",
    "training.global_batch_size=4",
];

/// 20 steps at once, and 20 steps of which the last 10 are done again from the checkpoint of step 10.
fn check_resume(words: &[&str]) {
    let [straight, resumed] = [Run::new(SMALL), Run::new(SMALL)];
    let train = |run: &Run| {
        run.write("tokens.bin", &random_tokens(3, 4099, ODD_VOCABULARY));
        run.train(words)
    };
    assert_eq!(train(&straight).steps, 20);
    resumed.continue_from(&straight, 10);
    assert_eq!(train(&resumed).steps, 20);
    let steps: Vec<u64> = resumed.curve().iter().map(|row| row.0).collect();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>());
    assert_eq!(resumed.curve(), straight.curve());
    // The rows after step 10 were measured again, not kept.
    let seconds = |run: &Run| run.metrics()[10..].iter().map(|m| m.step_seconds).sum::<f64>();
    assert_ne!(seconds(&resumed), seconds(&straight));
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let [a, b] = [&straight, &resumed].map(|run| run.checkpoint_file(20, file));
        // The state names the data by their path, which differs.
        let plain = |bytes: Vec<u8>, run: &Run| match file {
            "state.json" => String::from_utf8_lossy(&bytes)
                .replace(&run.path("").display().to_string(), "HERE/")
                .into_bytes(),
            _ => bytes,
        };
        assert!(plain(a, &straight) == plain(b, &resumed), "{file} differs");
    }
}

#[test]
fn adamw_resumes_bitwise() {
    check_resume(&[]);
}

#[test]
fn muon_resumes_bitwise() {
    check_resume(&MUON);
}

#[test]
fn mixed_and_shuffled_sources_resume_bitwise() {
    check_resume(&MIXED);
}

#[test]
fn bf16_with_recomputation_resumes_bitwise() {
    check_resume(&["precision.compute=bfloat16", "activation_checkpoint.mode=full"]);
}

/// What is written behind the run's back is what is written before its eyes.
#[test]
fn asynchronous_saves_are_the_same() {
    let [behind, before] = [Run::odd(), Run::odd()];
    behind.train(&["checkpoint.interval=1"]);
    before.train(&["checkpoint.interval=1", "checkpoint.async_mode=disabled"]);
    for step in 1..=20 {
        for file in ["model.safetensors", "optimizer.safetensors"] {
            assert!(
                behind.checkpoint_file(step, file) == before.checkpoint_file(step, file),
                "{file} of step {step}"
            );
        }
    }
}

#[test]
fn a_last_save_of_the_model_alone_is_used_but_not_continued() {
    let [whole, run] = [Run::odd(), Run::odd()];
    whole.train(&[]);
    let words = ["checkpoint.last_save_model_only=true"];
    run.train(&words);
    let model = "model.safetensors";
    assert!(run.checkpoint_file(20, model) == whole.checkpoint_file(20, model));
    let last = run.path("out/checkpoint/step-00000020");
    assert!(!last.join("optimizer.safetensors").exists());
    // It is at its end, which is no failure.
    assert_eq!(run.train(&words).steps, 20);
    assert_eq!(
        run.refusal(&["training.steps=30"]),
        "HERE/out/checkpoint/step-00000020: the checkpoint holds only the model \
         (`checkpoint.last_save_model_only`), so no run can continue from it: delete the folder to \
         continue from an older step, or use it with `generate`, `eval` or `convert`"
    );
    let registry = burn_titan_models::registry();
    LoadedModel::from_checkpoint(&last, &registry, Device::flex())
        .unwrap_or_else(|e| panic!("{e}"));
    to_hf(&last, &run.path("hf"), None, &registry).unwrap_or_else(|error| panic!("{error}"));
    assert!(run.path("hf/model.safetensors").is_file());
    // The one before it is whole.
    fs::remove_dir_all(&last).unwrap();
    run.train(&[]);
    assert!(run.checkpoint_file(20, model) == whole.checkpoint_file(20, model));
}

/// The row of a step is written before its checkpoint can be resumed from, or a crash between the
/// two would lose it.
#[test]
fn no_step_is_missing_after_a_failed_save() {
    let [straight, resumed] = [Run::odd(), Run::odd()];
    straight.train(&[]);
    resumed.continue_from(&straight, 10);
    let lock = File::create(resumed.path("out/checkpoint/.lock")).unwrap();
    lock.try_lock().unwrap();
    assert_eq!(
        resumed.refusal(&[]),
        "HERE/out/checkpoint: another process is saving to this folder: give each run its own \
         `run.output_dir`"
    );
    assert_eq!(resumed.curve(), straight.curve());
    lock.unlock().unwrap();
    resumed.train(&[]);
    assert_eq!(resumed.curve(), straight.curve());
}

#[test]
fn another_run_is_refused() {
    let run = Run::odd();
    run.train(&["training.steps=10"]);
    let changed = |name: &str, saved: &str, now: &str| {
        format!(
            "cannot continue the stream of data: {name} was {saved} when the checkpoint was \
             written and is {now} now: set it back, or start a new run"
        )
    };
    let other_model = |field: &str, saved: &str, now: &str| {
        format!(
            "HERE/out/checkpoint/step-00000010: the checkpoint is of a model with {field} = \
             {saved}, but the config says {now}: restore the value, or start a run of another \
             run.name"
        )
    };
    let cases: [(&str, String); 6] = [
        ("training.seq_len=36", changed("training.seq_len", "37", "36")),
        ("training.seed=1", changed("training.seed", "42", "1")),
        ("data.pack=false", changed("data.pack", "true", "false")),
        ("model.overrides.ffn_dim=78", other_model("ffn_dim", "77", "78")),
        ("model.overrides.rope_theta=10000", other_model("rope_theta", "500000.0", "10000.0")),
        (
            "optimizer={name: muon, groups: [{pattern: \"**.*norm.weight\", name: adamw}]}",
            "HERE/out/checkpoint/step-00000010: no optimizer state \
             `tok_embeddings.weight.momentum`: the checkpoint was made with another optimizer for \
             this parameter: restore the section `optimizer`, or start a run of another run.name"
                .into(),
        ),
    ];
    for (word, message) in cases {
        assert_eq!(run.refusal(&["training.steps=20", word]), message, "{word}");
    }
    let tokens = fs::read(run.path("tokens.bin")).unwrap();
    run.write("tokens.bin", &tokens[..tokens.len() - 2]);
    assert_eq!(
        run.refusal(&["training.steps=20"]),
        "cannot continue the stream of data: HERE/tokens.bin: the file \"tokens.bin\" has changed \
         from 2018 to 2016 bytes since the checkpoint was written: restore the files, or start a \
         new run"
    );
    // Nothing was lost by the attempts.
    run.write("tokens.bin", &tokens);
    run.train(&["training.steps=20"]);
    assert_eq!(run.curve().len(), 20);
}

/// Attention with a parameter that takes no part in it, and so never has a gradient.
#[derive(Module, Debug)]
struct Idle {
    attention: FusedAttention,
    idle: Linear,
}

impl Attention for Idle {
    fn new(config: &AttentionConfig, device: &Device) -> Self {
        let idle = LinearConfig::new(3, 5).with_bias(false).init(device);
        Self { attention: FusedAttention::new(config, device), idle }
    }

    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        self.attention.forward(x, context)
    }
}

#[test]
fn a_parameter_without_a_gradient_resumes() {
    let registry = Registry::default().with(Llama3::default().with_attention::<Idle>("idle"));
    let [straight, resumed] = [Run::odd(), Run::odd()];
    let run = |run: &Run| {
        let words = ["model.attention=idle".into()];
        let prepared =
            prepare(&run.path("run.yaml"), &words, &registry, Some(1)).expect("a sound config");
        train(prepared, &registry, World::alone()).unwrap_or_else(|error| panic!("{error}"));
    };
    run(&straight);
    resumed.continue_from(&straight, 10);
    run(&resumed);
    assert_eq!(resumed.curve(), straight.curve());
    let names = |file: &str| {
        let path = straight.path(&format!("out/checkpoint/step-00000020/{file}"));
        let file = tensor_file(&path);
        file.names().filter(|name| name.contains("idle")).count()
    };
    assert_eq!([names("model.safetensors"), names("optimizer.safetensors")], [2, 0]);
}
