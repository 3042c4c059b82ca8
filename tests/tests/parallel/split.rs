//! Tensor, sequence, loss and context parallelism against one rank: 20 steps from one seed, on the debug model and on
//! one in which nothing divides.

use std::collections::BTreeMap;

use burn_titan_core::checkpoint;
use burn_titan_tests::runs::{Run, random_tokens};

use crate::equal::{assert_close, curve};

/// A way to split the model.
struct Case {
    name: &'static str,
    ranks: usize,
    /// Ranks that read different samples.
    data: usize,
    words: &'static [&'static str],
}

const TP2: &str = "parallelism.tensor_parallel_degree=2";
const TP4: &str = "parallelism.tensor_parallel_degree=4";
const CP2: &str = "parallelism.context_parallel_degree=2";
const CP4: &str = "parallelism.context_parallel_degree=4";
const GATHER: &str = "parallelism.context_parallel_method=all_gather";
const NO_SP: &str = "parallelism.enable_sequence_parallel=false";
const NO_LOSS: &str = "parallelism.enable_loss_parallel=false";
const CHUNKS: &str = "parallelism.async_tensor_parallel_chunks=3";
const COPIES: &str = "parallelism.data_parallel_replicate_degree=2";

const CASES: [Case; 18] = [
    Case { name: "tp 2", ranks: 2, data: 1, words: &[TP2] },
    Case { name: "tp 2, no sp", ranks: 2, data: 1, words: &[TP2, NO_SP] },
    Case { name: "tp 2, no loss", ranks: 2, data: 1, words: &[TP2, NO_LOSS] },
    Case { name: "tp 2, neither", ranks: 2, data: 1, words: &[TP2, NO_SP, NO_LOSS] },
    Case { name: "tp 4", ranks: 4, data: 1, words: &[TP4] },
    Case { name: "tp 4, no sp", ranks: 4, data: 1, words: &[TP4, NO_SP] },
    Case { name: "tp 4, no loss", ranks: 4, data: 1, words: &[TP4, NO_LOSS] },
    Case { name: "tp 4, neither", ranks: 4, data: 1, words: &[TP4, NO_SP, NO_LOSS] },
    Case { name: "tp 2, chunks", ranks: 2, data: 1, words: &[TP2, CHUNKS] },
    Case { name: "tp 2, chunks, no sp", ranks: 2, data: 1, words: &[TP2, CHUNKS, NO_SP] },
    Case { name: "cp 2", ranks: 2, data: 1, words: &[CP2] },
    Case { name: "cp 2, gathered", ranks: 2, data: 1, words: &[CP2, GATHER] },
    Case { name: "cp 4", ranks: 4, data: 1, words: &[CP4] },
    Case { name: "cp 4, gathered", ranks: 4, data: 1, words: &[CP4, GATHER] },
    Case { name: "tp 2 x cp 2", ranks: 4, data: 1, words: &[TP2, CP2] },
    Case { name: "fsdp 2 x tp 2", ranks: 4, data: 2, words: &[TP2] },
    Case { name: "fsdp 2 x tp 2 x cp 2", ranks: 8, data: 2, words: &[TP2, CP2] },
    Case { name: "hsdp 2 x 2 x tp 2", ranks: 8, data: 4, words: &[TP2, COPIES] },
];

/// Where there are more ranks than key heads, and one of them has the output of one head only.
const SHARED_HEADS: [Case; 2] = [
    Case {
        name: "tp 8, 5 key heads",
        ranks: 8,
        data: 1,
        words: &["parallelism.tensor_parallel_degree=8"],
    },
    Case {
        name: "fsdp 2 x tp 6, 5 key heads",
        ranks: 12,
        data: 2,
        words: &["parallelism.tensor_parallel_degree=6", NO_SP],
    },
];

const DEBUG: &str = "
run: {output_dir: HERE/out}
model: {flavor: debug}
data:
  train: [{path: DATA/shakespeare/validation.jsonl}]
  tokenizer: DATA/tokenizer.json
  bos_token: <|begin_of_text|>
  eos_token: <|end_of_text|>
training: {steps: 20, seq_len: 64}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

const ODD: &str = "
run: {output_dir: HERE/out}
model:
  overrides:
    {n_layers: 2, dim: 60, n_heads: 10, n_kv_heads: 5, head_dim: 24, ffn_dim: 77, vocab_size: 331}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 20, seq_len: 129}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

fn debug() -> Run {
    Run::new(DEBUG)
}

fn odd() -> Run {
    let run = Run::new(ODD);
    run.write("tokens.bin", &random_tokens(7, 3001, 331));
    run
}

/// Micro-batches of the case that reads most samples, so that all cases read the same.
const SEQUENCES: usize = 4;

fn words(case: &Case, more: &[&'static str]) -> Vec<&'static str> {
    let batch = match case.data {
        1 => "training.local_batch_size=2",
        _ => "training.local_batch_size=1",
    };
    [&["training.global_batch_size=4", batch], case.words, more].concat()
}

fn matrix(make: impl Fn() -> Run, seq: usize, cases: &[Case], twice: bool) {
    let one = make();
    one.train(&["training.global_batch_size=4", "training.local_batch_size=2"]);
    let reference = curve(&one);
    assert_eq!(reference[0][3], (SEQUENCES * seq) as f64);
    for case in cases {
        let run = make();
        run.simulate(case.ranks, &words(case, &[]));
        assert_close(case.name, &reference, &curve(&run));
        if !twice {
            continue;
        }
        // With recomputation, the same operations again: bitwise the same, and so from run to run.
        let again = make();
        again.simulate(case.ranks, &words(case, &["activation_checkpoint.mode=full"]));
        assert_eq!(run.curve(), again.curve(), "{}, recomputed", case.name);
    }
}

#[test]
fn the_debug_model() {
    matrix(debug, 64, &CASES, false);
}

#[test]
fn odd_sizes() {
    matrix(odd, 129, &CASES, true);
    matrix(odd, 129, &SHARED_HEADS, true);
}

/// The gradient of each parameter in the first step: a tenth of it is AdamW's first moment after it.
fn first_gradients(run: &Run) -> BTreeMap<String, Vec<f32>> {
    let path = run.path("out/checkpoint/step-00000001");
    let checkpoint = checkpoint::open(&path).unwrap_or_else(|error| panic!("{error}"));
    let names = checkpoint.optimizer_tensors().map(|entry| entry.name.to_string());
    let moments: Vec<String> = names.filter(|name| name.ends_with(".exp_avg")).collect();
    let values = |name: &str| checkpoint.tensor(name).and_then(|tensor| Ok(tensor.to_f32()?));
    let values = |name: String| {
        let values = values(&name).unwrap_or_else(|error| panic!("{error}"));
        (name, values)
    };
    moments.into_iter().map(values).collect()
}

fn gradients(make: impl Fn() -> Run, cases: &[Case]) {
    let one_step = ["training.steps=1", "lr_scheduler.warmup_steps=0", "training.max_grad_norm=0"];
    let one_step = [&one_step[..], &["checkpoint.enable=true", "checkpoint.interval=1"]].concat();
    let one = make();
    let batch = ["training.global_batch_size=4", "training.local_batch_size=2"];
    one.train(&[&batch[..], &one_step].concat());
    let reference = first_gradients(&one);
    assert!(reference.len() > 15);
    for case in cases {
        let run = make();
        run.simulate(case.ranks, &words(case, &one_step));
        let found = first_gradients(&run);
        let mut worst = (0.0, "");
        for (name, want) in &reference {
            let difference = want.iter().zip(&found[name]).map(|(a, b)| f64::from(a - b).powi(2));
            let size: f64 = want.iter().map(|a| f64::from(*a).powi(2)).sum();
            let relative = (difference.sum::<f64>() / size).sqrt();
            if relative > worst.0 {
                worst = (relative, name);
            }
        }
        println!("{}: {:.1e} of {}", case.name, worst.0, worst.1);
        assert!(worst.0 < 1e-5, "{}: {worst:?}", case.name);
    }
}

#[test]
fn gradients_of_the_first_step() {
    gradients(debug, &CASES);
    gradients(odd, &CASES);
    gradients(odd, &SHARED_HEADS);
}

/// Packed documents and a tied output matrix, in bf16 between the ranks that split the model.
#[test]
fn tied_embeddings_and_bf16() {
    let tied = "model.overrides={n_layers: 2, dim: 64, n_heads: 4, n_kv_heads: 2, head_dim: 16, \
                ffn_dim: 128, tie_embeddings: true}";
    for (dtype, bound) in [("float32", 1e-6), ("bfloat16", 1e-2)] {
        let dtype = format!("precision.compute={dtype}");
        let common = ["training.global_batch_size=4", "training.local_batch_size=1", tied, &dtype];
        let one = debug();
        one.train(&common);
        for (ranks, split) in [(2, &[TP2][..]), (4, &[TP2, CP2]), (4, &[TP2, NO_SP, NO_LOSS])] {
            let run = debug();
            run.simulate(ranks, &[&common[..], split].concat());
            let pairs = one.losses().into_iter().zip(run.losses());
            let worst = pairs.map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
            println!("{dtype}, {split:?}: {worst:.1e}");
            assert!(worst < bound, "{dtype}, {split:?}: {worst:.1e}");
        }
    }
}

/// The loss over the validation split, and that of a step that breaks, are told as by one rank.
#[test]
fn validation_and_broken_steps() {
    let validation = [
        "data.validation=[{path: DATA/shakespeare/validation.jsonl}]",
        "validation.enable=true",
        "validation.steps=3",
        "training.steps=2",
        "lr_scheduler.warmup_steps=0",
        "training.global_batch_size=4",
        "training.local_batch_size=1",
    ];
    let loss = |ranks: usize, split: &[&str]| {
        let run = debug();
        let summary = run.simulate(ranks, &[&validation[..], split].concat());
        summary.validation_loss.expect("a validation loss")
    };
    let one = loss(1, &[]);
    for (ranks, split) in [(2, &[TP2][..]), (2, &[CP2]), (4, &[TP2, CP2]), (4, &[TP2, NO_SP])] {
        let split =
            [split, if ranks == 4 && split.contains(&NO_SP) { &[CP2] } else { &[] }].concat();
        let found = loss(ranks, &split);
        assert!(((found - one) / one).abs() < 1e-6, "{split:?}: {one} {found}");
    }
    let broken = ["optimizer.lr=1e30", "training.max_grad_norm=0", "training.global_batch_size=4"];
    let message = |ranks: usize, split: &[&str]| {
        let words = [&broken[..], &["training.local_batch_size=1"], split].concat();
        let error = debug().try_simulate(ranks, &words).expect_err("it diverges").to_string();
        error.replace(" of data-parallel rank 0", "")
    };
    let one = message(1, &[]);
    for (ranks, split) in [(2, &[TP2][..]), (2, &[CP2]), (4, &[TP2, CP2])] {
        assert_eq!(message(ranks, split), one, "{split:?}");
    }
}
