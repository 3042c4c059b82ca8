//! Steps whose loss or gradient is not finite.

use std::fs;

use burn_titan_core::checkpoint::{HostTensor, write_tensor_file};
use burn_titan_tests::runs::{Run, repository, tensor_file};

/// Token whose embedding is NaN in [`poisoned`].
const POISON: usize = 7;

const CONFIG: &str = "
run: {output_dir: HERE/out}
model: {flavor: hf, initial_hf: HERE/hf}
data: {train: [{path: HERE/tokens.bin}], pack: false, shuffle: false}
training: {steps: 8, seq_len: 16, local_batch_size: 2}
lr_scheduler: {warmup_steps: 0, decay_ratio: 0}
checkpoint: {interval: 1, keep_latest_k: 0}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// A run from weights in which the embedding of [`POISON`] is `value`; that token is only in the fourth
/// step's second row, whose first token is number 119.
fn poisoned(value: f32) -> Run {
    changed(|name, width, values| {
        if name == "model.embed_tokens.weight" {
            values[POISON * width..(POISON + 1) * width].fill(value);
        }
    })
}

/// A run from the golden weights, after `change` of each tensor's name, row length and values.
fn changed(change: impl Fn(&str, usize, &mut [f32])) -> Run {
    let run = Run::new(CONFIG);
    let golden = repository().join("tests/golden/llama_tiny");
    fs::create_dir(run.path("hf")).unwrap();
    fs::copy(golden.join("config.json"), run.path("hf/config.json")).unwrap();
    let file = tensor_file(&golden.join("model.safetensors"));
    let change = |name: &str| {
        let tensor = file.view(name).unwrap().to_tensor();
        let mut values = tensor.to_f32().unwrap();
        change(name, tensor.shape().last().copied().unwrap_or(1), &mut values);
        HostTensor::from_f32(name, tensor.shape(), &values).unwrap()
    };
    let tensors: Vec<HostTensor> = file.names().map(change).collect();
    write_tensor_file(&run.path("hf/model.safetensors"), &tensors, &[]).unwrap();
    let mut tokens: Vec<u16> = (0..17 * 16).map(|i| 20 + (i * i % 211) as u16).collect();
    tokens[17 * 7 + 5] = POISON as u16;
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    run.write("tokens.bin", &bytes);
    run
}

#[test]
fn a_run_stops_and_names_step_documents_and_unit() {
    let run = poisoned(f32::NAN);
    assert_eq!(
        run.refusal(&[]),
        "step 4: the loss of micro-batch 0 is not finite; the first unit whose output is not is \
         `tok_embeddings` (documents: HERE/tokens.bin: token 102, HERE/tokens.bin: token 119): \
         lower optimizer.lr, look at the documents, or set training.on_non_finite=skip"
    );
    // The steps before are kept, in metrics and checkpoint.
    assert_eq!(run.curve().len(), 3);
    assert!(run.path("out/checkpoint/step-00000003").is_dir());
    assert!(!run.path("out/checkpoint/step-00000004").exists());
}

#[test]
fn only_the_blamed_micro_batch_is_named() {
    let words = ["training.local_batch_size=1", "training.global_batch_size=2"];
    assert_eq!(
        poisoned(f32::INFINITY).refusal(&words),
        "step 4: the loss of micro-batch 1 is not finite; the first unit whose output is not is \
         `tok_embeddings` (documents: HERE/tokens.bin: token 119): lower optimizer.lr, look at \
         the documents, or set training.on_non_finite=skip"
    );
}

/// Gradients around 1e25 are finite, the square of their norm is not.
#[test]
fn a_norm_that_overflows_is_told_from_a_gradient_that_is_not_finite() {
    let run = changed(|name, _, values| {
        if name == "lm_head.weight" {
            values.iter_mut().for_each(|value| *value *= 1e25);
        }
    });
    assert_eq!(
        run.refusal(&[]),
        "step 1: the global norm of the gradients overflows float32, though each gradient is \
         finite (documents: HERE/tokens.bin: token 0, HERE/tokens.bin: token 17): lower \
         optimizer.lr, look at the documents, or set training.on_non_finite=skip"
    );
}

#[test]
fn a_skipped_step_changes_nothing() {
    let run = poisoned(f32::NAN);
    run.train(&["training.on_non_finite=skip"]);
    let rows = run.metrics();
    let skipped =
        |m: &burn_titan_core::metrics::StepMetrics| m.loss.is_nan() && m.grad_norm.is_nan();
    let which: Vec<u64> = rows.iter().filter(|m| skipped(m)).map(|m| m.step).collect();
    assert_eq!((rows.len(), which), (8, vec![4]));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let [before, at, after] = [3, 4, 5].map(|step| run.checkpoint_file(step, file));
        assert!(before == at, "{file} changed in the skipped step");
        assert!(at != after, "{file} did not change in the step after");
    }
    // A resume right after the skipped step goes on as the run did: its updates are 3, not 4.
    let resumed = poisoned(f32::NAN);
    resumed.continue_from(&run, 4);
    resumed.train(&["training.on_non_finite=skip"]);
    assert_eq!(resumed.curve(), run.curve());
    assert!(
        run.checkpoint_file(8, "model.safetensors")
            == resumed.checkpoint_file(8, "model.safetensors")
    );
}

/// A learning rate that is far too large, as a user would meet it.
#[test]
fn a_huge_learning_rate_stops_early() {
    let run = Run::odd();
    let message = run.refusal(&["optimizer.lr=1e30", "lr_scheduler.warmup_steps=0"]);
    let (step, documents) = message.split_once(" (documents: HERE/tokens.bin: token ").unwrap();
    assert_eq!(
        step,
        "step 2: the gradient of `norm.weight` is not finite; unit `head` is the first of the \
         backward with such a gradient"
    );
    assert!(documents.ends_with(
        "): lower optimizer.lr, look at the documents, or set training.on_non_finite=skip"
    ));
    assert_eq!(run.curve().len(), 1);
}

/// All ranks learn which of them broke, and where.
#[test]
fn ranks_tell_each_other_what_broke() {
    let words = ["training.local_batch_size=1"];
    for (from, words) in [(2, &words[..]), (1, &["training.local_batch_size=2"])] {
        let run = poisoned(f32::NAN);
        let error = run.try_simulate(from, words).expect_err("it cannot go on").to_string();
        let rank = if from == 2 { " of data-parallel rank 1" } else { "" };
        let told =
            format!("step 4: the loss of micro-batch 0{rank} is not finite; the first unit whose");
        assert!(error.starts_with(&told), "{error}");
        assert!(error.contains("tokens.bin: token 119"), "{error}");
        let skipped = poisoned(f32::NAN);
        skipped.simulate(from, &[words, &["training.on_non_finite=skip"]].concat());
        let finite: Vec<bool> = skipped.metrics().iter().map(|m| m.loss.is_finite()).collect();
        assert_eq!(finite.iter().filter(|finite| !**finite).count(), 1, "{finite:?}");
        assert!(!finite[3]);
    }
}
