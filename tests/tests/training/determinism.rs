//! Two runs of one config are one run.

use burn_titan_tests::runs::{Run, SMALL};

#[test]
fn two_runs_are_bitwise_equal() {
    let words = ["training.global_batch_size=4", "training.steps=6"];
    let [first, second] = [Run::new(SMALL), Run::new(SMALL)];
    first.train(&words);
    second.train(&words);
    assert_eq!(first.curve().len(), 6);
    assert_eq!(first.curve(), second.curve());
    assert_eq!(
        first.checkpoint_file(6, "model.safetensors"),
        second.checkpoint_file(6, "model.safetensors")
    );
    // The comparison can fail: the seed changes the order of the data and the initial weights.
    let other = Run::new(SMALL);
    other.train(&[&words[..], &["training.seed=43"]].concat());
    assert!(first.curve().iter().zip(other.curve()).all(|(a, b)| a.1 != b.1 && a.2 != b.2));
}

#[test]
fn odd_sizes_and_bf16_are_bitwise_equal_too() {
    for words in [&["training.steps=4"][..], &["training.steps=4", "precision.compute=bfloat16"]] {
        let [first, second] = [Run::odd(), Run::odd()];
        first.train(words);
        second.train(words);
        assert_eq!(first.curve(), second.curve(), "{words:?}");
        assert!(first.losses().iter().all(|loss| loss.is_finite()));
    }
}

/// A finished run that is started again does nothing and changes nothing.
#[test]
fn a_finished_run_stays_as_it_is() {
    let run = Run::odd();
    let words = ["training.steps=3"];
    assert_eq!(run.train(&words).steps, 3);
    let (curve, model) = (run.curve(), run.checkpoint_file(3, "model.safetensors"));
    let again = run.train(&words);
    assert_eq!((again.steps, again.loss), (3, None));
    assert_eq!(run.curve(), curve);
    assert_eq!(run.checkpoint_file(3, "model.safetensors"), model);
}
