//! What `plan` counts is what a run holds. The tests of this file take turns, because they count what the whole
//! process allocates.

mod latent;
mod pipeline;
mod qwen3;
mod qwen3_moe;
mod shared;
mod units;

use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor};
use burn_titan_core::plan::plan;
use burn_titan_core::trainer::prepare;
use burn_titan_tests::counting::Counting;
use burn_titan_tests::runs::{Run, random_tokens};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

static TURN: Mutex<()> = Mutex::new(());

const VOCABULARY: u16 = 1024;

/// Eight blocks whose parameters, gradients and optimizer state take about as much as the activations.
const CONFIG: &str = "
run: {output_dir: HERE/out}
model:
  overrides:
    {n_layers: 8, dim: 128, n_heads: 4, n_kv_heads: 2, head_dim: 32, ffn_dim: 384, vocab_size: 1024}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 2, seq_len: 128, local_batch_size: 4}
lr_scheduler: {warmup_steps: 0}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// What the product that gives the logits of 512 tokens holds besides its result: room in which the CPU sorts operands.
/// It goes by the caches, from one MiB to several, and no plan counts it.
fn sorted_operands() -> usize {
    let [a, b] = [[512, 128], [128, VOCABULARY.into()]].map(ones);
    let besides = |result: usize| {
        let before = ALLOCATOR.in_use();
        ALLOCATOR.forget_peak();
        drop(a.clone().matmul(b.clone()));
        (ALLOCATOR.peak() - before).saturating_sub(result)
    };
    // What is made once for the process is counted for none.
    besides(0);
    besides(512 * usize::from(VOCABULARY) * size_of::<f32>())
}

fn ones(shape: [usize; 2]) -> Tensor<2> {
    Tensor::ones(shape, &Device::flex())
}

/// Most bytes that a run of so many ranks had in use at once, above those before it, and what `plan` counts.
fn measured_and_planned(ranks: usize, words: &[&str]) -> [usize; 2] {
    let run = Run::new(CONFIG);
    run.write("tokens.bin", &random_tokens(1, 40_009, VOCABULARY));
    let registry = burn_titan_models::registry();
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    let prepared = prepare(&run.path("run.yaml"), &words, &registry, Some(ranks))
        .unwrap_or_else(|e| panic!("{e}"));
    let plan = plan(&prepared, ranks).unwrap_or_else(|error| panic!("{error}"));
    let planned = match plan.pipeline {
        None => plan.memory.peak.bytes as usize * ranks,
        Some(pipeline) => {
            let along: u64 = pipeline.ranks.iter().map(|rank| rank.peak).sum();
            along as usize * ranks / pipeline.ranks.len()
        }
    };
    let before = ALLOCATOR.in_use();
    ALLOCATOR.forget_peak();
    run.simulate(ranks, &words.iter().map(String::as_str).collect::<Vec<_>>());
    [ALLOCATOR.peak() - before, planned]
}

/// How a case's bytes compare, and whether they are further apart than 8 in 100, with what ranks sort besides or without.
/// Ranks that are not all at their peak at one time hold less together, and a rank that a busy machine keeps waiting
/// holds what has come for it in the meantime: one of up to four runs must be near.
fn compared(name: &str, ranks: usize, words: &[&str]) -> (String, bool) {
    let besides = ranks * sorted_operands();
    let mut runs = Vec::new();
    let mut is_near = || {
        let [measured, planned] = measured_and_planned(ranks, words);
        let ratio = |bytes: usize| bytes as f64 / planned as f64;
        let (least, most) = (ratio(measured.saturating_sub(besides)), ratio(measured));
        runs.push(format!("{least:.3} to {most:.3}"));
        least < 1.08 && most > 0.92
    };
    let near = (0..if ranks > 1 { 4 } else { 1 }).any(|_| is_near());
    let line = format!("{name}: {} of what is planned", runs.join(", "));
    println!("{line}");
    (line, !near)
}

#[test]
fn a_run_holds_what_is_planned() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // What is made once for the process is counted for none.
    measured_and_planned(4, &[]);
    let meshes = [("one rank", 1, 1), ("FSDP 4", 4, 1), ("DDP 4", 4, 4), ("HSDP 2x2", 4, 2)];
    let mut results = Vec::new();
    for (mesh, ranks, replicas) in meshes {
        for (mode, micro_batches) in [("none", 1), ("none", 3), ("full", 1), ("full", 3)] {
            let words = [
                format!("parallelism.data_parallel_replicate_degree={replicas}"),
                format!("activation_checkpoint.mode={mode}"),
                format!("training.global_batch_size={}", 4 * ranks * micro_batches),
            ];
            let name = format!("{mesh}, checkpointing {mode}, {micro_batches} micro-batches");
            results.push(compared(&name, ranks, &words.each_ref().map(String::as_str)));
        }
    }
    let full = "activation_checkpoint.mode=full";
    let muon = [
        "optimizer.name=muon",
        "optimizer.groups=[{pattern: '**.{attention_norm,ffn_norm,norm}.weight', name: adamw}]",
        full,
    ];
    let others = [
        ("Muon", &muon[..]),
        ("bfloat16", &["precision.compute=bfloat16"]),
        ("bfloat16, full", &["precision.compute=bfloat16", full]),
        ("int8", &["comm.quantize=all", full]),
        ("tied", &["model.overrides.tie_embeddings=true", full]),
        (
            "ZeRO-1",
            &[
                "parallelism.fsdp_reshard_after_forward=never",
                "parallelism.reduce_every_micro_batch=false",
                "training.global_batch_size=32",
                full,
            ],
        ),
    ];
    for (name, words) in others {
        results.push(compared(&format!("FSDP 4, {name}"), 4, words));
    }
    let wrong: Vec<String> =
        results.into_iter().filter(|(_, far)| *far).map(|(line, _)| line).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Wider, and with longer sequences: what [`a_run_holds_what_is_planned`] says of one rank is shared by several here, and
/// what no plan counts (about a MiB a rank: the data loader, and operands that the CPU's matrix product sorts) is not.
const WIDER: [&str; 6] = [
    "model.overrides.n_layers=6",
    "model.overrides.dim=192",
    "model.overrides.head_dim=48",
    "model.overrides.ffn_dim=576",
    "training.seq_len=256",
    "model.overrides.vocab_size=1024",
];

/// Where ranks meet only in attention, what they hold for a moment is never held by all at once: more of what stays.
const DEEPER: &str = "model.overrides.n_layers=10";

const TP2: &str = "parallelism.tensor_parallel_degree=2";
const TP4: &str = "parallelism.tensor_parallel_degree=4";
const CP2: &str = "parallelism.context_parallel_degree=2";
const CP4: &str = "parallelism.context_parallel_degree=4";
const GATHER: &str = "parallelism.context_parallel_method=all_gather";
const NO_SP: &str = "parallelism.enable_sequence_parallel=false";
const NO_LOSS: &str = "parallelism.enable_loss_parallel=false";

#[test]
fn ranks_that_split_the_model_hold_what_is_planned() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // What is made once for the process is counted for none.
    let wider = |words: &[&'static str]| [&WIDER[..], words].concat();
    measured_and_planned(4, &wider(&[TP2, CP2]));
    let splits = [
        ("TP 2", 2, &[TP2][..]),
        ("TP 2, no SP", 2, &[TP2, NO_SP]),
        ("TP 2, no LP", 2, &[TP2, NO_LOSS]),
        ("TP 4", 4, &[TP4]),
        ("CP 2", 2, &[CP2]),
        ("CP 2, all_gather", 2, &[CP2, GATHER]),
        ("CP 4", 4, &[CP4, DEEPER]),
        ("CP 4, all_gather", 4, &[CP4, GATHER, DEEPER]),
        ("FSDP 2 x TP 2", 4, &[TP2]),
        ("TP 2 x CP 2", 4, &[TP2, CP2]),
    ];
    let mut results = Vec::new();
    for (name, ranks, words) in splits {
        for mode in ["none", "full"] {
            let checkpointing = format!("activation_checkpoint.mode={mode}");
            let words = [&wider(words)[..], &[&checkpointing]].concat();
            results.push(compared(&format!("{name}, checkpointing {mode}"), ranks, &words));
        }
    }
    let wrong: Vec<String> =
        results.into_iter().filter(|(_, far)| *far).map(|(line, _)| line).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
