//! Units, as they run alone, hold what they say.

use std::collections::HashMap;
use std::sync::{Barrier, PoisonError};

use burn::tensor::{DType, Device, Tensor};
use burn_titan_core::model::{
    Activations, Context, HeadOutput, Model, ModelFamily, Sharing, Stream, Unit, Workload,
};
use burn_titan_kernels::{inject_gradient, put_off_weights};
use burn_titan_models::Llama3;
use burn_titan_tests::numbers::noise;
use burn_titan_tests::tiny;
use serde_json::json;

use super::{ALLOCATOR, TURN};

/// A model of two blocks, batch, sequence length.
type Case = ([(&'static str, usize); 6], usize, usize);

const CASES: [Case; 3] = [
    (sizes([64, 4, 4, 16, 192, 331]), 8, 256),
    // Fewer key heads; more vocabulary than tokens.
    (sizes([128, 4, 2, 32, 384, 1024]), 4, 128),
    // More parameters than activations.
    (sizes([128, 4, 2, 32, 384, 1024]), 1, 64),
];

pub(super) const fn sizes(
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

pub(super) fn model(sizes: &[(&str, usize)], tied: bool) -> Model {
    let mut overrides = json!({"n_layers": 2, "tie_embeddings": tied});
    for (name, size) in sizes {
        overrides[*name] = (*size).into();
    }
    let family = Llama3::default();
    let overrides = overrides.as_object().expect("an object");
    let config = family.resolve("debug", overrides).expect("sizes");
    family.build(&config, "fused").expect("a model")
}

/// Ranks that run the same at once.
#[derive(Clone, Copy)]
pub(super) struct Together<'a> {
    pub(super) ranks: usize,
    pub(super) barrier: Option<&'a Barrier>,
    pub(super) first: bool,
}

impl Together<'_> {
    pub(super) const ALONE: Self = Self { ranks: 1, barrier: None, first: true };

    fn wait(&self) {
        if let Some(barrier) = self.barrier {
            barrier.wait();
        }
    }

    /// Runs `f` on every rank; gives its result, the bytes that it left on a rank, and the most that it held at once.
    fn held<T>(&self, f: impl FnOnce() -> T) -> (T, usize, usize) {
        self.wait();
        let before = ALLOCATOR.in_use();
        self.wait();
        if self.first {
            ALLOCATOR.forget_peak();
        }
        self.wait();
        let result = f();
        self.wait();
        let left = ALLOCATOR.in_use().saturating_sub(before) / self.ranks;
        let most = ALLOCATOR.peak().saturating_sub(before) / self.ranks;
        self.wait();
        (result, left, most)
    }
}

/// What a unit takes as it runs alone: as [`Activations`] counts it, output and graph in one.
pub(super) fn measured(
    unit: &dyn Unit,
    context: &Context,
    workload: &Workload,
    dim: usize,
    together: Together,
) -> [usize; 5] {
    let options = (&Device::flex(), workload.compute);
    let values: HashMap<String, Tensor<1>> = unit
        .parameters()
        .into_iter()
        .map(|spec| {
            let values = noise(spec.elements(), 1);
            (spec.name, Tensor::<1>::from_data(values.as_slice(), options) * 0.1)
        })
        .collect();
    let mut value = |name: &str| values[name].clone();
    let (tracked, plain) =
        (unit.with_parameters(true, &mut value), unit.with_parameters(false, &mut value));
    let shape = match workload.sharing.tensor.sequence {
        true => [1, workload.stream_tokens(), dim],
        false => [workload.batch, workload.seq, dim],
    };
    let values = noise(shape.iter().product(), 2);
    let hidden = || Tensor::<1>::from_data(values.as_slice(), options).reshape(shape);
    let first = unit.name() == "tok_embeddings";
    let input = match first {
        true => Stream::Tokens(context.tokens.clone()),
        false => Stream::Hidden(hidden()),
    };
    let (output, _, plain_forward) = together.held(|| plain.forward(input.clone(), context));
    drop(output);
    let leaf = match input {
        Stream::Hidden(hidden) => Some(hidden.autodiff().require_grad()),
        _ => None,
    };
    let input = leaf.clone().map_or(Stream::Tokens(context.tokens.clone()), Stream::Hidden);
    let (output, kept, forward) = together.held(|| tracked.forward(input, context));
    let gradient_of = |output: &Stream| matches!(output, Stream::Hidden(_)).then(hidden);
    let gradient = gradient_of(&output);
    let backward_of = |output, gradient: Option<Tensor<3>>| match output {
        Stream::Loss(loss) => {
            let seed = Tensor::full([1], 0.5, (&Device::flex(), DType::F32));
            inject_gradient(loss, seed).backward()
        }
        Stream::Hidden(hidden) => {
            inject_gradient(hidden, gradient.expect("one of the output")).backward()
        }
        other => panic!("no backward starts from {other:?}"),
    };
    let (gradients, _, backward) = together.held(|| {
        let mut gradients = backward_of(output, gradient);
        let mut taken: Vec<_> = Vec::new();
        tracked.take_gradients(&mut gradients, &mut |_, gradient| taken.push(gradient));
        (leaf.and_then(|leaf| leaf.grad_remove(&mut gradients)), taken)
    });
    drop(gradients);
    let (waiting, put_off, _) = together.held(|| {
        let input = match first {
            true => Stream::Tokens(context.tokens.clone()),
            false => Stream::Hidden(hidden().autodiff().require_grad()),
        };
        let output = tracked.forward(input, context);
        let gradient = gradient_of(&output);
        put_off_weights(|| backward_of(output, gradient)).1
    });
    drop(waiting);
    [plain_forward, kept, forward, backward, put_off]
}

/// What a unit says that it takes, as [`measured`] gives it.
pub(super) fn said(unit: &dyn Unit, workload: &Workload) -> [usize; 5] {
    let a: Activations = unit.activations(workload).expect("a unit that knows");
    // All but the backward leave the output.
    let forward = [a.plain_forward, a.graph, a.graph + a.forward].map(|x| x + a.output);
    let [plain, graph, kept] = forward;
    [plain, graph, kept, a.backward, a.put_off].map(|x| x as usize)
}

/// The names of these.
pub(super) const MEASURED: [&str; 5] = ["plain forward", "graph", "forward", "backward", "put off"];

/// Nodes of autodiff, and the memory in which the CPU's matrix product sorts its operands.
pub(super) const SMALL: usize = 96 << 10;

/// The sorted operands of the head's products, which are of many rows.
pub(super) const SORTED: usize = 1 << 20;

#[test]
fn units_hold_what_they_say() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut wrong = Vec::new();
    for (sizes, batch, seq) in CASES {
        for (compute, tied) in
            [(DType::F32, false), (DType::F32, true), (DType::BF16, false), (DType::BF16, true)]
        {
            let workload = Workload { batch, seq, compute, native: true, sharing: Sharing::ALONE };
            let (model, dim) = (model(&sizes, tied), sizes[0].1);
            let tokens: Vec<i64> =
                (0..workload.tokens()).map(|i| (i * 7 % model.vocab_size) as i64).collect();
            let batch = tiny::batch(seq, &tokens, &tiny::next_tokens(seq, &tokens));
            let context = Context::new(&batch, HeadOutput::Loss, &Device::flex());
            for (number, unit) in model.units.iter().enumerate() {
                let found = measured(&**unit, &context, &workload, dim, Together::ALONE);
                // The first block makes what both share.
                if number == 1 {
                    continue;
                }
                let counted = said(&**unit, &workload);
                for (i, what) in MEASURED.into_iter().enumerate() {
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
