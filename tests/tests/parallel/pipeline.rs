//! Pipeline parallelism against one rank: 20 steps from one seed, with every schedule.

use burn_titan_tests::runs::{Run, random_tokens};

use crate::equal::{assert_close, curve};

/// Eight blocks, so that four ranks can have two stages each; nothing in it divides.
const DEEP: &str = "
run: {output_dir: HERE/out}
model:
  overrides:
    {n_layers: 8, dim: 36, n_heads: 6, n_kv_heads: 3, head_dim: 10, ffn_dim: 53, vocab_size: 331}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 20, seq_len: 37, local_batch_size: 1, global_batch_size: 8}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

const SCHEDULES: [&str; 7] =
    ["gpipe", "1f1b", "interleaved_1f1b", "looped_bfs", "zb1p", "zbv", "dualpipev"];

fn deep() -> Run {
    let run = Run::new(DEEP);
    run.write("tokens.bin", &random_tokens(7, 3001, 331));
    run
}

fn schedule(name: &str) -> String {
    format!("parallelism.pipeline_parallel_schedule={name}")
}

fn degree(ranks: usize) -> String {
    format!("parallelism.pipeline_parallel_degree={ranks}")
}

#[test]
fn every_schedule_equals_one_rank() {
    let one = deep();
    one.train(&[]);
    let reference = curve(&one);
    for ranks in [2, 3, 4] {
        for name in SCHEDULES {
            let run = deep();
            run.simulate(ranks, &[&degree(ranks), &schedule(name)]);
            assert_close(&format!("pp {ranks}, {name}"), &reference, &curve(&run));
            if ranks == 2 {
                let again = deep();
                let full = "activation_checkpoint.mode=full";
                again.simulate(ranks, &[&degree(ranks), &schedule(name), full]);
                assert_eq!(run.curve(), again.curve(), "{name}, recomputed");
            }
        }
    }
}

#[test]
fn with_every_other_parallelism() {
    let one = deep();
    one.train(&[]);
    let reference = curve(&one);
    let (tp, cp) =
        ("parallelism.tensor_parallel_degree=2", "parallelism.context_parallel_degree=2");
    let copies = "parallelism.data_parallel_replicate_degree=2";
    let free = "parallelism.fsdp_reshard_after_forward=always";
    let full = "activation_checkpoint.mode=full";
    let last = "parallelism.reduce_every_micro_batch=false";
    let cases: [(usize, &[&str]); 8] = [
        (4, &[]),
        (4, &[free, full]),
        (4, &[last]),
        (4, &[tp]),
        (4, &[cp]),
        (8, &[copies]),
        (8, &[tp, last, full]),
        (8, &[tp, cp]),
    ];
    for name in ["1f1b", "zbv"] {
        for (ranks, words) in cases {
            let run = deep();
            run.simulate(ranks, &[&[&*degree(2), &schedule(name)], words].concat());
            assert_close(&format!("{ranks} ranks, {name}, {words:?}"), &reference, &curve(&run));
        }
    }
}

/// The embedding on the first stage is the output matrix on the last: on other ranks, or, in a V, on the same.
#[test]
fn tied_embeddings() {
    let tied = "model.overrides={n_layers: 8, dim: 36, n_heads: 6, n_kv_heads: 3, head_dim: 10, \
                ffn_dim: 53, vocab_size: 331, tie_embeddings: true}";
    let one = deep();
    one.train(&[tied]);
    let reference = curve(&one);
    for (ranks, pipeline, name) in [(2, 2, "1f1b"), (4, 2, "zb1p"), (3, 3, "gpipe"), (2, 2, "zbv")]
    {
        let run = deep();
        run.simulate(ranks, &[tied, &degree(pipeline), &schedule(name)]);
        assert_close(&format!("{ranks} ranks, {name}, tied"), &reference, &curve(&run));
    }
}

/// Stages by hand; a checkpoint of a pipeline, continued by one rank, and the other way round.
#[test]
fn checkpoints_fit_any_pipeline() {
    let saves = ["checkpoint.enable=true", "checkpoint.interval=10", "checkpoint.keep_latest_k=0"];
    let one = deep();
    one.train(&saves);
    let reference = curve(&one);
    let mesh = [
        "parallelism.pipeline_parallel_degree=2",
        "parallelism.tensor_parallel_degree=2",
        "parallelism.pipeline_parallel_first_units=[layers.5]",
    ];
    let words = [&saves[..], &mesh].concat();
    let eight = deep();
    eight.simulate(8, &words);
    assert_close("fsdp 2 x tp 2 x pp 2", &reference, &curve(&eight));
    for (ranks, words) in [(1, &saves[..]), (8, &words)] {
        for from in [&one, &eight] {
            let run = deep();
            run.continue_from(from, 10);
            run.simulate(ranks, words);
            assert_close(&format!("resumed by {ranks} ranks"), &reference, &curve(&run));
        }
    }
}

#[test]
fn validation_on_a_pipeline() {
    let words = [
        "data.validation=[{path: HERE/tokens.bin}]",
        "validation.enable=true",
        "validation.steps=3",
        "training.steps=3",
    ];
    let loss = |ranks: usize, more: &[&str]| {
        let summary = deep().simulate(ranks, &[&words[..], more].concat());
        summary.validation_loss.expect("a validation loss")
    };
    let one = loss(1, &[]);
    for name in ["1f1b", "interleaved_1f1b", "zbv"] {
        let found = loss(3, &[&degree(3), &schedule(name)]);
        assert!(((found - one) / one).abs() < 1e-6, "{name}: {one} {found}");
    }
    let broken = ["optimizer.lr=1e30", "training.max_grad_norm=0"];
    let message = |ranks: usize, more: &[&str]| {
        let run = deep();
        let error = run.try_simulate(ranks, &[&broken[..], more].concat());
        let error = error.expect_err("it diverges").to_string();
        let here = run.path("").display().to_string();
        error.replace(&here, "").replace(" of data-parallel rank 0", "")
    };
    assert_eq!(message(2, &[&degree(2), &schedule("zbv")]), message(1, &[]));
}

#[test]
fn pipelines_that_cannot_be_are_refused() {
    let refused = |ranks: usize, words: &[&str]| {
        let error = deep().try_simulate(ranks, words).expect_err("it is refused");
        error.to_string()
    };
    for (ranks, name, message) in [
        (9, "1f1b", "9 ranks x 1 stages = 9 stages, but the model has only 8 blocks"),
        (5, "zbv", "5 ranks x 2 stages = 10 stages, but the model has only 8 blocks"),
    ] {
        let found = refused(ranks, &[&degree(ranks), &schedule(name)]);
        assert!(found.contains(message), "{found}");
    }
    let units = "parallelism.pipeline_parallel_first_units";
    for (list, message) in [
        ("[layers.4, layers.6]", "3 stages are given by hand, but 2 ranks x 1 stages are 2"),
        ("[layers.9]", "`layers.9` begins no stage: expected a unit from `layers.0` to `head`"),
    ] {
        let found = refused(2, &[&degree(2), &format!("{units}={list}")]);
        assert!(found.contains(message), "{found}");
    }
    let each = "parallelism.pipeline_parallel_stages_per_rank=2";
    let found = refused(2, &[&degree(2), each]);
    assert!(found.contains("1f1b takes 1 stages per rank"), "{found}");
}
