//! A run from Hugging Face weights on a fixed token file reproduces the curve of `tests/golden/train`.

use std::fs;

use burn_titan_tests::runs::{Run, random_tokens, repository};
use safetensors::SafeTensors;

const FROM_HF: &str = "
run: {output_dir: HERE/out}
model: {flavor: hf, initial_hf: GOLDEN/llama_tiny}
data: {train: [{path: HERE/tokens.FORMAT}], pack: false, shuffle: false}
training: {steps: 50, seq_len: 64, local_batch_size: 4, max_grad_norm: 0}
optimizer: {name: adamw, lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1}
lr_scheduler: {warmup_steps: 0, decay_ratio: 0}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// The stored tokens, `[50, 4, 65]`: 200 rows of 65.
fn golden_tokens() -> Vec<i32> {
    let path = repository().join("tests/golden/train/tokens.safetensors");
    let bytes = fs::read(&path).expect("the golden tokens are there");
    let file = SafeTensors::deserialize(&bytes).expect("the golden tokens can be read");
    let tokens = file.tensor("tokens").expect("the file has `tokens`");
    assert_eq!(tokens.shape(), [50, 4, 65]);
    let word = |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    tokens.data().chunks_exact(4).map(word).collect()
}

/// NumPy's array format, version 1.
fn npy(tokens: &[i32], rows: usize) -> Vec<u8> {
    let shape = format!("({rows}, {})", tokens.len() / rows);
    let header = format!("{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    bytes
}

fn check_curve(format: &str, contents: &[u8], words: &[&str]) {
    let golden = repository().join("tests/golden");
    let config = FROM_HF.replace("GOLDEN", &golden.display().to_string()).replace("FORMAT", format);
    let run = Run::new(&config);
    run.write(&format!("tokens.{format}"), contents);
    run.train(words);
    let reference: serde_json::Value = serde_json::from_slice(
        &fs::read(golden.join("train/loss_curve_50.json")).expect("the golden curve is there"),
    )
    .expect("the golden curve is JSON");
    let metrics = run.metrics();
    assert_eq!(metrics.len(), 50);
    let (mut loss_error, mut norm_error) = (0.0_f64, 0.0_f64);
    for (i, metrics) in metrics.iter().enumerate() {
        let expected = |key: &str| reference["adamw_const"][key][i].as_f64().unwrap_or(f64::NAN);
        let loss = (metrics.loss - expected("loss")).abs();
        let norm = (metrics.grad_norm / expected("grad_norm") - 1.0).abs();
        assert!(loss < 1e-4, "step {}: {} {}", i + 1, metrics.loss, expected("loss"));
        assert!(norm < 1e-3, "step {}: {} {}", i + 1, metrics.grad_norm, expected("grad_norm"));
        assert_eq!(metrics.lr, 1e-3);
        (loss_error, norm_error) = (loss_error.max(loss), norm_error.max(norm));
    }
    println!("{format} {words:?}: loss within {loss_error:.1e}, norm within {norm_error:.1e}");
}

#[test]
fn npy_of_rows() {
    check_curve("npy", &npy(&golden_tokens(), 200), &[]);
}

/// One row: it is cut every `seq_len + 1` tokens.
#[test]
fn bin_with_accumulation_and_recomputation() {
    let tokens = golden_tokens();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| (*token as u16).to_le_bytes()).collect();
    let words = [
        "training.local_batch_size=2",
        "training.global_batch_size=4",
        "activation_checkpoint.mode=full",
    ];
    check_curve("bin", &bytes, &words);
}

const EXPERTS_FROM_HF: &str = "
run: {output_dir: HERE/out}
model: {name: FAMILY, flavor: hf, initial_hf: GOLDEN/FAMILY_tiny}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 4, seq_len: 37, local_batch_size: 2}
lr_scheduler: {warmup_steps: 0}
checkpoint: {interval: 2}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// No folder says how experts are balanced: the config does, and a run that goes on may change it.
#[test]
fn experts_of_a_folder_are_balanced_as_the_config_says() {
    let golden = repository().join("tests/golden").display().to_string();
    for family in ["qwen3_moe", "deepseek_v3"] {
        let run = || {
            let config = EXPERTS_FROM_HF.replace("FAMILY", family).replace("GOLDEN", &golden);
            let run = Run::new(&config);
            run.write("tokens.bin", &random_tokens(5, 2000, 256));
            run
        };
        let (rate, z) = ("model.overrides.load_balance_rate", "model.overrides.router_z_loss");
        let biases = |run: &Run, step| {
            let file = run.checkpoint_file(step, "model.safetensors");
            let file = SafeTensors::deserialize(&file).expect("a file of tensors");
            let names = file.names().into_iter().filter(|name| name.ends_with("router.bias"));
            let mut values: Vec<_> = names
                .map(|name| (name.to_string(), file.tensor(name).unwrap().data().to_vec()))
                .collect();
            values.sort();
            values
        };
        let still = run();
        // A whole number is that fraction.
        still.train(&[&format!("{rate}=0"), "training.steps=2"]);
        let balanced = run();
        balanced.train(&[&format!("{rate}=0.01"), &format!("{z}=0.001")]);
        let (a, b) = (still.metrics(), balanced.metrics());
        assert_eq!(a[0].loss, b[0].loss, "{family}: the weights are the folder's");
        assert_eq!((a[0].auxiliary_loss, b[0].auxiliary_loss.is_some()), (None, true), "{family}");
        assert!(b.iter().all(|metrics| metrics.dropped == Some(0)), "{family}");
        assert_ne!(biases(&balanced, 2), biases(&balanced, 4), "{family}: they move");

        balanced.train(&["training.steps=6", &format!("{rate}=0.002")]);
        assert_eq!(balanced.metrics().len(), 6, "{family}: another rate goes on");
        if family == "qwen3_moe" {
            let refusal = balanced.refusal(&["training.steps=8", &format!("{rate}=0")]);
            assert!(
                refusal.contains("load_balance_rate"),
                "without numbers it is another model: {refusal}"
            );
        }
    }
}
