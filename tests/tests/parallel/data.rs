//! The data-parallel family against one rank: 20 steps from one seed, on a model of round sizes and on one in
//! which nothing divides.

use burn_titan_core::checkpoint::{self, CheckpointError};
use burn_titan_tests::runs::{Run, SMALL};

/// A way to spread the data over ranks.
struct Case {
    name: &'static str,
    ranks: usize,
    words: &'static [&'static str],
}

const DDP: &str = "parallelism.data_parallel_shard_degree=1";
const NEVER: &str = "parallelism.fsdp_reshard_after_forward=never";
const LAST: &str = "parallelism.reduce_every_micro_batch=false";

const CASES: [Case; 9] = [
    Case { name: "ddp 2", ranks: 2, words: &[DDP, "parallelism.data_parallel_replicate_degree=2"] },
    Case { name: "ddp 4", ranks: 4, words: &[DDP, "parallelism.data_parallel_replicate_degree=4"] },
    Case { name: "fsdp 2", ranks: 2, words: &[] },
    Case { name: "fsdp 3", ranks: 3, words: &[] },
    Case { name: "fsdp 4", ranks: 4, words: &[] },
    Case { name: "hsdp 2 x 2", ranks: 4, words: &["parallelism.data_parallel_replicate_degree=2"] },
    Case { name: "zero-1", ranks: 2, words: &[NEVER, LAST] },
    Case { name: "zero-2", ranks: 2, words: &[NEVER] },
    Case { name: "zero-3, one reduction", ranks: 2, words: &[LAST] },
];

const FULL: &str = "activation_checkpoint.mode=full";

/// Loss and gradient norm of every step, and the parameters after the last.
struct Reached {
    curve: Vec<(f64, f64)>,
    parameters: Vec<f32>,
}

impl Reached {
    fn by(run: &Run) -> Self {
        let folder = run.path("out/checkpoint/step-00000020");
        let checkpoint = checkpoint::open(&folder).unwrap_or_else(|error| panic!("{error}"));
        let values = |name| Ok::<_, CheckpointError>(checkpoint.tensor(name)?.to_f32()?);
        let parameters = checkpoint
            .model_tensors()
            .flat_map(|entry| values(entry.name).unwrap_or_else(|error| panic!("{error}")))
            .collect();
        let curve = run.metrics().iter().map(|m| (m.loss, m.grad_norm)).collect();
        Self { curve, parameters }
    }
}

fn assert_close(name: &str, reference: &Reached, found: &Reached) {
    let (parameters, others) = (&reference.parameters, &found.parameters);
    let moved = parameters.iter().zip(others).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert_eq!(parameters.len(), others.len());
    let (reference, found) = (&reference.curve, &found.curve);
    assert_eq!((reference.len(), found.len()), (20, 20), "{name}");
    let relative = |a: f64, b: f64| ((a - b) / a).abs();
    let mut worst = (0.0_f64, 0.0_f64);
    for (a, b) in reference.iter().zip(found) {
        worst = (worst.0.max(relative(a.0, b.0)), worst.1.max(relative(a.1, b.1)));
    }
    println!("{name}: loss {:.1e}, norm {:.1e}, parameters {moved:.1e}", worst.0, worst.1);
    assert!(worst.0 < 1e-5 && worst.1 < 1e-5 && moved < 1e-5, "{name}: {worst:?} {moved}");
}

fn check_all(make: impl Fn() -> Run) {
    for micro_batches in [1, 3] {
        for case in &CASES {
            let global = format!("training.global_batch_size={}", case.ranks * micro_batches);
            let common = ["training.local_batch_size=1", global.as_str()];
            let one = make();
            one.train(&common);
            let reference = Reached::by(&one);
            let [kept, recomputed] = [&[][..], &[FULL][..]].map(|mode| {
                let name = format!("{}, {micro_batches} micro-batches, {mode:?}", case.name);
                let run = make();
                run.simulate(case.ranks, &[&common[..], case.words, mode].concat());
                assert_close(&name, &reference, &Reached::by(&run));
                run.curve()
            });
            assert_eq!(kept, recomputed, "{}: sums of the same order", case.name);
        }
    }
}

#[test]
fn round_sizes() {
    check_all(|| Run::new(SMALL));
}

#[test]
fn odd_sizes() {
    check_all(Run::odd);
}

/// Orthogonalised by owners of whole matrices, the rest by AdamW.
#[test]
fn muon() {
    let words = [
        "training.local_batch_size=1",
        "training.global_batch_size=6",
        "optimizer.name=muon",
        "optimizer.groups=[{pattern: \"{tok_embeddings,output}.weight\", name: adamw}, \
         {pattern: \"**.{norm,attention_norm,ffn_norm}.weight\", name: adamw}]",
    ];
    let one = Run::odd();
    one.train(&words);
    for ranks in [2, 3] {
        let run = Run::odd();
        run.simulate(ranks, &words);
        assert_close(&format!("muon, {ranks} ranks"), &Reached::by(&one), &Reached::by(&run));
    }
}

/// Fewer bytes between ranks: near the numbers of one rank, and not on them.
#[test]
fn rounded_exchanges() {
    let common =
        ["training.local_batch_size=1", "training.global_batch_size=3", "optimizer.lr=3e-3"];
    let one = Run::new(SMALL);
    one.train(&common);
    let first = one.losses()[0] - one.losses()[19];
    assert!(first > 0.3, "it learns: {first}");
    for (words, bound) in [
        ("precision.reduce=bfloat16", 2e-3),
        ("comm.quantize=gradients", 2.5e-2),
        ("comm.quantize=parameters", 6e-3),
        ("comm.quantize=all", 2.5e-2),
    ] {
        let runs = [(); 2].map(|()| {
            let run = Run::new(SMALL);
            run.simulate(3, &[&common[..], &[words]].concat());
            run
        });
        assert_eq!(runs[0].curve(), runs[1].curve(), "{words}: run to run");
        let pairs = one.losses().into_iter().zip(runs[0].losses());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{words}: {worst:.1e}");
        assert!(worst > 0.0 && worst < bound, "{words}: {worst}");
    }
}
