//! Pipeline parallelism against one rank: 20 steps from one seed, with every schedule.

use std::fs;

use burn_titan_parallel::pipeline::{Family, Shape, csv};
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
        (9, "1f1b", "9 stages on 9 ranks, but the model has only 8 blocks"),
        (5, "zbv", "10 stages on 5 ranks, but the model has only 8 blocks"),
    ] {
        let found = refused(ranks, &[&degree(ranks), &schedule(name)]);
        assert!(found.contains(message), "{found}");
    }
    let units = "parallelism.pipeline_parallel_first_units";
    for (list, message) in [
        ("[layers.4, layers.6]", "3 stages are given by hand, but the schedule has 2 on 2 ranks"),
        ("[layers.9]", "`layers.9` begins no stage: expected a unit from `layers.0` to `head`"),
    ] {
        let found = refused(2, &[&degree(2), &format!("{units}={list}")]);
        assert!(found.contains(message), "{found}");
    }
    let each = "parallelism.pipeline_parallel_stages_per_rank=2";
    let found = refused(2, &[&degree(2), each]);
    assert!(found.contains("1f1b takes 1 stages per rank"), "{found}");
}

/// The file of a schedule that is built in.
fn schedule_file(run: &Run, family: Family, micro_batches: usize) {
    let (each, _) = family.stages_per_rank().unwrap_or((1, ""));
    let schedule = family.schedule(Shape { ranks: 2, stages_per_rank: each, micro_batches });
    let text = csv::write(&schedule.expect("counts")).expect("a schedule that ends");
    run.write("schedule.csv", text.as_bytes());
}

const CSV: [&str; 2] = [
    "parallelism.pipeline_parallel_schedule=csv",
    "parallelism.pipeline_parallel_schedule_csv=HERE/schedule.csv",
];

#[test]
fn a_schedule_from_a_file() {
    for family in [Family::ZeroBubble, Family::DualPipeV] {
        let named = deep();
        named.simulate(2, &[&degree(2), &schedule(family.name())]);
        let read = deep();
        schedule_file(&read, family, 8);
        read.simulate(2, &[&[&*degree(2)], &CSV[..]].concat());
        assert_eq!(named.curve(), read.curve(), "{}", family.name());
    }
}

#[test]
fn schedules_in_files_that_cannot_be_are_refused() {
    let refused = |text: Option<&str>, words: &[&str]| {
        let run = deep();
        schedule_file(&run, Family::OneForwardOneBackward, 7);
        if let Some(text) = text {
            run.write("schedule.csv", text.as_bytes());
        }
        let error = run.try_simulate(2, &[&[&*degree(2)], words].concat());
        let here = run.path("").display().to_string();
        error.expect_err("it is refused").to_string().replace(&here, "HERE/")
    };
    let missing = "parallelism.pipeline_parallel_schedule_csv=HERE/shedule.csv";
    let cases = [
        (
            None,
            &CSV[..],
            "the schedule `HERE/schedule.csv` is for 7 micro-batches, but the run has 8",
        ),
        (Some("0F0"), &CSV, "the schedule `HERE/schedule.csv` is for 1 ranks, but the run has 2"),
        (
            Some("0F0,0G0"),
            &CSV,
            "the schedule `HERE/schedule.csv`: row 1, column 2: \"0G0\" is no step",
        ),
        (None, &CSV[..1], "`parallelism.pipeline_parallel_schedule` is `csv`, so"),
        (None, &CSV[1..], "but `parallelism.pipeline_parallel_schedule` is `1f1b`"),
        (None, &[CSV[0], missing], "did you mean `HERE/schedule.csv`?"),
    ];
    for (text, words, message) in cases {
        let found = refused(text, words);
        assert!(found.contains(message), "{message}: {found}");
    }
    // Every micro-batch is there, but one backward comes before its forward.
    let rank = |stage: usize, first: &str| {
        let steps = (1..8).map(|micro| format!(",{stage}F{micro},{stage}B{micro}"));
        first.to_string() + &steps.collect::<String>()
    };
    let text = rank(0, "0B0,0F0") + "\n" + &rank(1, "1F0,1B0");
    let found = refused(Some(&text), &CSV);
    assert!(found.contains("the schedule is wrong: "), "{found}");
}

/// Both pictures of `timeline.svg` have every step and every message.
#[test]
fn what_happened_is_drawn() {
    for (name, kinds) in [("1f1b", 2), ("zb1p", 3)] {
        let run = deep();
        run.simulate(4, &[&degree(2), &schedule(name), "training.steps=3"]);
        let svg = fs::read_to_string(run.path("out/timeline.svg")).expect("a picture");
        let count = |what: &str| svg.matches(what).count();
        // The last operation of either rank is a backward; each picture has a ground for both, and a legend.
        let each = 2 * kinds * 4 + 2 + kinds;
        assert_eq!(count("<rect "), 2 * each, "{name}");
        assert_eq!(count("<line "), 2 * 2 * 4, "{name}");
        assert!(svg.contains(&format!("{name}, step 2 as it was, in seconds: bubble ")), "{svg}");
    }
    let one = deep();
    one.train(&["training.steps=3"]);
    assert!(!one.path("out/timeline.svg").exists());
}
