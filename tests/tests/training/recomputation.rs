//! Full activation checkpointing computes the same numbers.

use burn_titan_tests::runs::{Run, SMALL};

fn check_bitwise(make: fn() -> Run, words: &[&str]) {
    let [none, full] = [make(), make()];
    none.train(&[words, &["activation_checkpoint.mode=none"]].concat());
    full.train(&[words, &["activation_checkpoint.mode=full"]].concat());
    assert_eq!(none.curve().len(), 6);
    assert_eq!(none.curve(), full.curve(), "{words:?}");
    assert!(
        none.checkpoint_file(6, "model.safetensors")
            == full.checkpoint_file(6, "model.safetensors")
    );
}

#[test]
fn full_is_bitwise_none() {
    check_bitwise(|| Run::new(SMALL), &["training.steps=6", "training.global_batch_size=4"]);
}

#[test]
fn with_odd_sizes_tied_embeddings_and_bf16() {
    check_bitwise(Run::odd, &["training.steps=6", "model.overrides.tie_embeddings=true"]);
    check_bitwise(Run::odd, &["training.steps=6", "precision.compute=bfloat16"]);
}
