//! A checkpoint fits any number of ranks, whatever number has written it.

use burn_titan_core::checkpoint::{self, Checkpoint};
use burn_titan_tests::runs::{Run, random_tokens};

/// A number of ranks, and how they share the model.
struct Mesh {
    name: &'static str,
    ranks: usize,
    words: &'static [&'static str],
}

const MESHES: [Mesh; 8] = [
    Mesh { name: "1", ranks: 1, words: &[] },
    Mesh { name: "2", ranks: 2, words: &[] },
    Mesh { name: "3", ranks: 3, words: &[] },
    Mesh { name: "4", ranks: 4, words: &[] },
    Mesh { name: "2 x 2", ranks: 4, words: &["parallelism.data_parallel_replicate_degree=2"] },
    Mesh { name: "2 x tp 2", ranks: 4, words: &["parallelism.tensor_parallel_degree=2"] },
    Mesh { name: "tp 4", ranks: 4, words: &["parallelism.tensor_parallel_degree=4"] },
    Mesh {
        name: "tp 2 x cp 2",
        ranks: 4,
        words: &["parallelism.tensor_parallel_degree=2", "parallelism.context_parallel_degree=2"],
    },
];

/// Divides by every number of ranks.
const COMMON: [&str; 2] = ["training.local_batch_size=1", "training.global_batch_size=12"];

/// A model with experts, in a run that divides by every number of ranks.
const EXPERTS: &str = "
run: {output_dir: HERE/out}
model:
  name: qwen3_moe
  overrides:
    {n_layers: 2, dim: 36, n_heads: 6, n_kv_heads: 3, head_dim: 10, n_experts: 12, top_k: 3,
     expert_dim: 37, vocab_size: 331}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 20, seq_len: 37, local_batch_size: 1, global_batch_size: 12}
checkpoint: {interval: 2, keep_latest_k: 0}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

fn open(run: &Run, step: u64) -> Checkpoint {
    let path = run.path(&format!("out/checkpoint/step-{step:08}"));
    checkpoint::open(&path).unwrap_or_else(|error| panic!("{error}"))
}

/// Name and values of every tensor of a group.
fn tensors(checkpoint: &Checkpoint, optimizer: bool) -> Vec<(String, Vec<f32>)> {
    let entries: Vec<_> = match optimizer {
        true => checkpoint.optimizer_tensors().collect(),
        false => checkpoint.model_tensors().collect(),
    };
    let read = |name: &str| checkpoint.tensor(name).and_then(|tensor| Ok(tensor.to_f32()?));
    let read = |name: &str| read(name).unwrap_or_else(|error| panic!("{error}"));
    entries.iter().map(|entry| (entry.name.to_string(), read(entry.name))).collect()
}

fn assert_close(name: &str, reference: &[f64], found: &[f64]) {
    assert_eq!(reference.len(), found.len(), "{name}");
    for (a, b) in reference.iter().zip(found) {
        assert!(((a - b) / a).abs() < 1e-5, "{name}: {reference:?} {found:?}");
    }
}

/// Bitwise, but for moments that were exactly zero.
fn assert_unchanged(name: &str, saved: &[(String, Vec<f32>)], again: &[(String, Vec<f32>)]) {
    assert_eq!(saved.len(), again.len(), "{name}");
    for ((tensor, a), (other, b)) in saved.iter().zip(again) {
        assert_eq!((tensor, a.len()), (other, b.len()), "{name}");
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a == 0.0 && b.abs() < 1e-15);
        assert!(a.iter().zip(b).all(|(a, b)| same(*a, *b)), "{name}: {tensor}");
    }
}

/// Saved at step 4 on one mesh, continued to step 8 on another.
#[test]
fn any_mesh_continues_from_any_other() {
    let straight = Run::odd();
    straight.train(&[&COMMON[..], &["training.steps=8", "checkpoint.interval=4"]].concat());
    for from in &MESHES {
        let first = Run::odd();
        let words = ["training.steps=8", "checkpoint.interval=4"];
        first.simulate(from.ranks, &[&COMMON[..], &words, from.words].concat());
        assert_close(from.name, &straight.losses(), &first.losses());
        let saved = open(&first, 4);
        for to in &MESHES {
            let name = format!("{} to {}", from.name, to.name);
            // Updates too small to change a bit: what was loaded is saved again.
            let still = Run::odd();
            still.continue_from(&first, 4);
            let beta = [1, 2].map(|i| format!("optimizer.beta{i}=0.9999999999999999"));
            let words = ["training.steps=5", "optimizer.lr=1e-30", &beta[0], &beta[1]];
            still.simulate(to.ranks, &[&COMMON[..], &words, to.words].concat());
            let again = open(&still, 5);
            for optimizer in [false, true] {
                assert_unchanged(&name, &tensors(&saved, optimizer), &tensors(&again, optimizer));
            }

            let second = Run::odd();
            second.continue_from(&first, 4);
            let words = ["training.steps=8"];
            second.simulate(to.ranks, &[&COMMON[..], &words, to.words].concat());
            assert_close(&name, &straight.losses(), &second.losses());
            if from.name == to.name {
                assert_eq!(first.curve(), second.curve(), "{name}");
                for optimizer in [false, true] {
                    let [a, b] = [&first, &second].map(|run| tensors(&open(run, 8), optimizer));
                    assert!(a == b, "{name}: optimizer {optimizer}");
                }
            }
        }
    }
}

/// The meshes of a model with experts, by the degrees of `ep`.
const EXPERT_MESHES: [Mesh; 5] = [
    Mesh { name: "1", ranks: 1, words: &[] },
    Mesh { name: "3", ranks: 3, words: &[] },
    Mesh { name: "ep 2", ranks: 2, words: &["parallelism.expert_parallel_degree=2"] },
    Mesh {
        name: "2 x tp 2, ep 4",
        ranks: 4,
        words: &["parallelism.tensor_parallel_degree=2", "parallelism.expert_parallel_degree=4"],
    },
    Mesh { name: "4, ep 2", ranks: 4, words: &["parallelism.expert_parallel_degree=2"] },
];

/// Saved at step 2 with experts dealt out in one way, continued with another.
#[test]
fn experts_move_between_ranks() {
    let experts = || {
        let run = Run::new(EXPERTS);
        run.write("tokens.bin", &random_tokens(7, 3001, 331));
        run
    };
    let straight = experts();
    straight.train(&["training.steps=4"]);
    for from in &EXPERT_MESHES {
        let first = experts();
        first.simulate(from.ranks, &[&["training.steps=4"], from.words].concat());
        assert_close(from.name, &straight.losses(), &first.losses());
        let saved = open(&first, 2);
        for to in &EXPERT_MESHES {
            let name = format!("{} to {}", from.name, to.name);
            let still = experts();
            still.continue_from(&first, 2);
            let beta = [1, 2].map(|i| format!("optimizer.beta{i}=0.9999999999999999"));
            let words = ["training.steps=3", "optimizer.lr=1e-30", &beta[0], &beta[1]];
            still.simulate(to.ranks, &[&words, to.words].concat());
            let again = open(&still, 3);
            // What balances routers moves with the load.
            let is_bias = |(name, _): &(String, Vec<f32>)| name.ends_with("router.bias");
            let (mut saved, mut again) = (
                [false, true].map(|optimizer| tensors(&saved, optimizer)),
                [false, true].map(|optimizer| tensors(&again, optimizer)),
            );
            for (a, b) in saved.iter_mut().zip(&mut again) {
                for ((name, a), (_, b)) in
                    a.iter().zip(b.iter()).filter(|(tensor, _)| is_bias(tensor))
                {
                    let moved = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                    assert!(moved.into_iter().all(|moved| moved < 1.001e-2), "{name}");
                    assert!(a.iter().any(|bias| *bias != 0.0), "{name}");
                }
                a.retain(|tensor| !is_bias(tensor));
                b.retain(|tensor| !is_bias(tensor));
                assert_unchanged(&name, a, b);
            }
            let second = experts();
            second.continue_from(&first, 2);
            second.simulate(to.ranks, &[&["training.steps=4"], to.words].concat());
            assert_close(&name, &straight.losses(), &second.losses());
            if from.name == to.name {
                assert_eq!(first.curve(), second.curve(), "{name}");
            }
        }
    }
}

/// Ranks write files of their own; one rank writes what it always wrote.
#[test]
fn every_rank_writes_its_part() {
    let run = Run::odd();
    run.simulate(3, &[&COMMON[..], &["training.steps=3"]].concat());
    let folder = run.path("out/checkpoint/step-00000003");
    let names = std::fs::read_dir(&folder).expect("the checkpoint is there");
    let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into());
    let mut names: Vec<String> = names.collect();
    names.sort();
    println!("{names:?}");
    for part in ["model-rank-00000", "model-rank-00002", "optimizer-rank-00001"] {
        assert!(names.iter().any(|name| name.starts_with(part)), "{part} in {names:?}");
    }
}
