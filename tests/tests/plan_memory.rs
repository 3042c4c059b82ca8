//! What `plan` counts is what a run holds. The tests of this file take turns, because they count what the whole
//! process allocates.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor};
use burn_titan_core::model::{
    Activations, Context, HeadOutput, Model, ModelFamily, Stream, Unit, Workload,
};
use burn_titan_core::plan::plan;
use burn_titan_core::trainer::prepare;
use burn_titan_kernels::inject_gradient;
use burn_titan_models::Llama3;
use burn_titan_tests::counting::Counting;
use burn_titan_tests::runs::{Run, random_tokens};
use burn_titan_tests::tiny;
use serde_json::json;

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

/// Most bytes that a run of so many ranks had in use at once, above those before it, and what `plan` counts.
fn measured_and_planned(ranks: usize, words: &[&str]) -> [usize; 2] {
    let run = Run::new(CONFIG);
    run.write("tokens.bin", &random_tokens(1, 40_009, VOCABULARY));
    let registry = burn_titan_models::registry();
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    let prepared = prepare(&run.path("run.yaml"), &words, &registry, Some(ranks))
        .unwrap_or_else(|e| panic!("{e}"));
    let planned = plan(&prepared, ranks).unwrap_or_else(|error| panic!("{error}")).memory.peak;
    let before = ALLOCATOR.in_use();
    ALLOCATOR.forget_peak();
    run.simulate(ranks, &words.iter().map(String::as_str).collect::<Vec<_>>());
    [ALLOCATOR.peak() - before, planned.bytes as usize * ranks]
}

/// How a case's bytes compare, and whether they are further apart than a tenth. Ranks that are not all at their peak
/// at one time hold less together: what is measured is the most of some runs.
fn compared(name: &str, ranks: usize, words: &[&str]) -> (String, bool) {
    let [mut measured, planned] = measured_and_planned(ranks, words);
    for _ in 0..3 {
        if ranks > 1 && measured < planned * 19 / 20 {
            measured = measured.max(measured_and_planned(ranks, words)[0]);
        }
    }
    let ratio = measured as f64 / planned as f64;
    let line = format!("{name}: {measured} bytes, planned {planned}: {ratio:.3}");
    println!("{line}");
    (line, (ratio - 1.0).abs() > 0.1)
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

/// A model of two blocks, batch, sequence length.
type Case = ([(&'static str, usize); 6], usize, usize);

const CASES: [Case; 3] = [
    (sizes([64, 4, 4, 16, 192, 331]), 8, 256),
    // Fewer key heads; more vocabulary than tokens.
    (sizes([128, 4, 2, 32, 384, 1024]), 4, 128),
    // More parameters than activations.
    (sizes([128, 4, 2, 32, 384, 1024]), 1, 64),
];

const fn sizes(
    [dim, heads, kv_heads, head_dim, ffn_dim, vocabulary]: [usize; 6],
) -> [(&'static str, usize); 6] {
    [
        ("dim", dim),
        ("n_heads", heads),
        ("n_kv_heads", kv_heads),
        ("head_dim", head_dim),
        ("ffn_dim", ffn_dim),
        ("vocab_size", vocabulary),
    ]
}

fn model(sizes: &[(&str, usize)], tied: bool) -> Model {
    let mut overrides = json!({"n_layers": 2, "tie_embeddings": tied});
    for (name, size) in sizes {
        overrides[*name] = (*size).into();
    }
    let family = Llama3::default();
    let overrides = overrides.as_object().expect("an object");
    let config = family.resolve("debug", overrides).expect("sizes");
    family.build(&config, "fused").expect("a model")
}

/// Runs `f`; gives its result, the bytes that it left, and the most that it held at once.
fn held<T>(f: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = ALLOCATOR.in_use();
    ALLOCATOR.forget_peak();
    let result = f();
    (result, ALLOCATOR.in_use().saturating_sub(before), ALLOCATOR.peak() - before)
}

/// What a unit takes as it runs alone: as [`Activations`] counts it, output and graph in one.
fn measured(unit: &dyn Unit, context: &Context, workload: &Workload, dim: usize) -> [usize; 4] {
    let options = (&Device::flex(), workload.compute);
    let values: HashMap<String, Tensor<1>> = unit
        .parameters()
        .into_iter()
        .map(|spec| {
            let value = Tensor::<1>::ones([spec.elements()], options) * 0.01;
            (spec.name, value)
        })
        .collect();
    let mut value = |name: &str| values[name].clone();
    let (tracked, plain) =
        (unit.with_parameters(true, &mut value), unit.with_parameters(false, &mut value));
    let hidden = || Tensor::<3>::ones([workload.batch, workload.seq, dim], options) * 0.5;
    let first = unit.name() == "tok_embeddings";
    let input = match first {
        true => Stream::Tokens(context.tokens.clone()),
        false => Stream::Hidden(hidden()),
    };
    let (output, _, plain_forward) = held(|| plain.forward(input.clone(), context));
    drop(output);
    let leaf = match input {
        Stream::Hidden(hidden) => Some(hidden.autodiff().require_grad()),
        _ => None,
    };
    let input = leaf.clone().map_or(Stream::Tokens(context.tokens.clone()), Stream::Hidden);
    let (output, kept, forward) = held(|| tracked.forward(input, context));
    let gradient = hidden();
    let (gradients, _, backward) = held(|| {
        let mut gradients = match output {
            Stream::Loss(loss) => {
                let seed = Tensor::full([1], 0.5, (&Device::flex(), DType::F32));
                inject_gradient(loss, seed).backward()
            }
            Stream::Hidden(hidden) => inject_gradient(hidden, gradient).backward(),
            other => panic!("no backward starts from {other:?}"),
        };
        let mut taken: Vec<_> = Vec::new();
        tracked.take_gradients(&mut gradients, &mut |_, gradient| taken.push(gradient));
        (leaf.and_then(|leaf| leaf.grad_remove(&mut gradients)), taken)
    });
    drop(gradients);
    [plain_forward, kept, forward, backward]
}

/// Nodes of autodiff, and the memory in which the CPU's matrix product sorts its operands.
const SMALL: usize = 96 << 10;

/// The sorted operands of the head's products, which are of many rows.
const SORTED: usize = 1 << 20;

#[test]
fn units_hold_what_they_say() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut wrong = Vec::new();
    for (sizes, batch, seq) in CASES {
        for (compute, tied) in
            [(DType::F32, false), (DType::F32, true), (DType::BF16, false), (DType::BF16, true)]
        {
            let workload = Workload { batch, seq, compute, native: true };
            let (model, dim) = (model(&sizes, tied), sizes[0].1);
            let tokens: Vec<i64> =
                (0..workload.tokens()).map(|i| (i * 7 % model.vocab_size) as i64).collect();
            let batch = tiny::batch(seq, &tokens, &tiny::next_tokens(seq, &tokens));
            let context = Context::new(&batch, HeadOutput::Loss, &Device::flex());
            for (number, unit) in model.units.iter().enumerate() {
                let found = measured(&**unit, &context, &workload, dim);
                // The first block makes what both share.
                if number == 1 {
                    continue;
                }
                let a: Activations = unit.activations(&workload).expect("a unit that knows");
                let counted =
                    [a.plain_forward, a.graph, a.graph + a.forward, a.backward].map(|x| x as usize);
                let counted = std::array::from_fn::<usize, 4, _>(|i| {
                    // All but the backward leave the output.
                    counted[i] + if i < 3 { a.output as usize } else { 0 }
                });
                for (i, what) in
                    ["plain forward", "graph", "forward", "backward"].into_iter().enumerate()
                {
                    let small = if unit.name() == "head" && i != 1 { SORTED } else { SMALL };
                    let most = counted[i] + counted[i] / 50 + small;
                    let line = format!(
                        "{} of {workload:?}, tied {tied}: {what} {} bytes, said {}",
                        unit.name(),
                        found[i],
                        counted[i]
                    );
                    println!("{line}");
                    if found[i] > most || found[i] < counted[i] * 9 / 10 {
                        wrong.push(line);
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
