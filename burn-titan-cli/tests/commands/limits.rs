//! Sizes that no machine can do are refused at once, in place of a panic, an abort or an endless run.

use crate::sandbox::Sandbox;

/// What a command that must be refused printed first, with its words.
fn refusal(arguments: &[&str]) -> String {
    let ended = Sandbox::new().run(arguments);
    assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
    ended.stderr.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn sizes_without_end_are_refused() {
    let cases = [
        (
            "data.prefetch_batches=1000000000000000000",
            "error: `data.prefetch_batches`: expected an integer from 1 to 1024, found the integer \
             `1000000000000000000`",
        ),
        (
            "training.local_batch_size=1000000000000000",
            "error: a micro-batch of 1000000000000000 x 32 tokens is too large: at most 16777216 \
             tokens are possible",
        ),
        (
            "training={steps: 4, seq_len: 32, local_batch_size: 1, global_batch_size: 1000000000}",
            "error: a global batch of 1000000000 sequences is 1000000000 micro-batches of 1, but at \
             most 65536 are possible",
        ),
        (
            "optimizer.ns_steps=1000000000000000000",
            "error: `optimizer.ns_steps`: expected an integer from 1 to 100, found the integer \
             `1000000000000000000`",
        ),
        (
            "model.overrides.n_layers=1000000000",
            "error: `n_layers` is 1000000000: expected at most 10000",
        ),
        (
            "model.overrides.vocab_size=1000000000000",
            "error: `vocab_size` is 1000000000000: expected at most 2147483647",
        ),
        (
            "model.overrides.norm_eps=1e-50",
            "error: `norm_eps` is 1e-50: expected a number from 1.1754944e-38 to 3.4028235e38 \
             (single precision)",
        ),
    ];
    for (word, message) in cases {
        for command in ["validate", "train"] {
            assert_eq!(refusal(&[command, "run.yaml", word]), message, "{command}");
        }
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_by_train_only() {
    let sandbox = Sandbox::new();
    let sizes = ["model.overrides.vocab_size=2147483647", "model.overrides.dim=16384"];
    let with = |command| [&[command, "run.yaml"], &sizes[..]].concat();
    sandbox.succeed(&with("validate"));
    let message = refusal(&with("train"));
    assert!(
        message.starts_with(
            "error: model: training 70368763101184 parameters takes at least 1048576.3 GiB for \
             weights, gradients and the optimizer's state, but this machine has "
        ) && message.ends_with(" GiB of memory: choose a smaller model, or a larger machine"),
        "{message}"
    );
}

/// Sizes are held against the memory before anything is allocated.
#[cfg(target_os = "linux")]
#[test]
fn tensors_that_do_not_fit_are_not_measured() {
    let cases = [
        ["bench", "matmul", "--shape", "2000000000x2000000000x2"],
        ["bench", "attention", "--seq", "2000000000"],
        ["bench", "optimizer", "--elements", "2000000000000"],
    ];
    let messages = cases.map(|words| refusal(&words));
    assert!(
        messages[0].starts_with("error: --shape: the tensors take 14901161223.6 GiB, but this "),
        "{messages:?}"
    );
    assert!(messages[1].starts_with("error: --seq: the tensors take "), "{messages:?}");
    assert!(messages[1].ends_with(" GiB of memory: choose smaller sizes"), "{messages:?}");
    assert!(messages[2].contains("expected a whole number from 1 to 2147483647"), "{messages:?}");
}
