//! Full activation checkpointing holds less memory. The only test of this file, because it counts
//! what the whole process allocates.

use burn_titan_tests::counting::Counting;
use burn_titan_tests::runs::{ODD_VOCABULARY, Run, random_tokens};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Ten blocks with far more activations than parameters.
const DEEP: &str = "
run: {output_dir: HERE/out}
model:
  overrides:
    {n_layers: 10, dim: 64, n_heads: 4, n_kv_heads: 4, head_dim: 16, ffn_dim: 192, vocab_size: 331}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 2, seq_len: 256, local_batch_size: 8}
lr_scheduler: {warmup_steps: 0}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// Bytes that a run had in use at its peak, above those before it.
fn peak_of(mode: &str, steps: usize) -> usize {
    let run = Run::new(DEEP);
    run.write("tokens.bin", &random_tokens(1, 40_009, ODD_VOCABULARY));
    let before = ALLOCATOR.in_use();
    ALLOCATOR.forget_peak();
    run.train(&[&format!("activation_checkpoint.mode={mode}"), &format!("training.steps={steps}")]);
    ALLOCATOR.peak() - before
}

#[test]
fn full_recomputation_holds_less_memory_and_no_step_leaves_any() {
    // What is made once for the process is counted for neither.
    peak_of("full", 2);
    let [none, full] = ["none", "full"].map(|mode| peak_of(mode, 2));
    let longer = peak_of("full", 12);
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let ratio = full as f64 / none as f64;
    println!("none {:.1} MiB, full {:.1} MiB: {ratio:.2}", mib(none), mib(full));
    println!("full over 12 steps {:.1} MiB", mib(longer));
    assert!(ratio < 0.5, "none {none} bytes, full {full} bytes");
    assert!(mib(longer) < mib(full) + 1.0, "2 steps {full} bytes, 12 steps {longer} bytes");
}
