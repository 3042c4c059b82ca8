//! `docs/parallelism.md` shows the programs that are really written, and a strategy that really works.

use std::time::Duration;

use burn::tensor::Device;
use burn_titan_core::executor::{Executor, Groups, Layout, ModelSplit, ParameterStore, Precision};
use burn_titan_core::model::{HeadOutput, Model, ModelFamily};
use burn_titan_models::Llama3;
use burn_titan_parallel::step::{Strategy, training};
use burn_titan_parallel::{Degrees, Mesh, Program, World, check};
use burn_titan_tests::runs::repository;
use burn_titan_tests::tiny::{batch, context};
use serde_json::json;

use super::breadth_first::breadth_first;

/// The actions of a program, in lines that fit a page.
fn printed(program: &Program) -> String {
    let mut text = String::new();
    let mut width = 0;
    for action in program.to_string().lines() {
        if width > 0 && width + 1 + action.len() > 100 {
            text.push('\n');
            width = 0;
        }
        if width > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(action);
        width += action.len();
    }
    text
}

#[test]
fn the_page_shows_what_is_written() {
    let path = repository().join("docs/parallelism.md");
    let page = std::fs::read_to_string(&path).expect("docs/parallelism.md");
    let of = |recompute, reshard_after_forward, reduce_every_micro_batch, replicas| Strategy {
        micro_batches: 2,
        recompute,
        reshard_after_forward,
        reduce_every_micro_batch,
        replicas,
        split: false,
        experts: false,
    };
    let written = |strategy| printed(&training(2, &strategy));
    let blocks = [
        ("DDP", written(of(false, false, false, 2))),
        ("ZeRO-1", written(of(false, false, false, 1))),
        ("ZeRO-2", written(of(false, false, true, 1))),
        ("ZeRO-3, which is FSDP", written(of(true, true, true, 1))),
        ("HSDP", written(of(true, true, true, 2))),
        ("A strategy of your own", include_str!("breadth_first.rs").trim_end().to_string()),
        ("What it writes", printed(&breadth_first(2, 2))),
    ];
    for (heading, text) in blocks {
        let section = page.split_once(&format!("# {heading}\n")).map(|(_, rest)| rest);
        let section = section.unwrap_or_else(|| panic!("the page has no section `{heading}`"));
        let block = section.split("```").nth(1).and_then(|block| block.split_once('\n'));
        let shown = block.map(|(_, text)| text.trim_end()).unwrap_or_default();
        assert_eq!(
            shown, text,
            "the section `{heading}` of docs/parallelism.md should show\n{text}"
        );
    }
}

fn model() -> Model {
    let family = Llama3::default();
    let sizes = json!({"n_layers": 2, "dim": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16,
        "ffn_dim": 48, "vocab_size": 67});
    let sizes = family.resolve("debug", sizes.as_object().expect("an object")).expect("sizes");
    family.build(&sizes, "fused").expect("a model")
}

/// The global norm of the gradients of two micro-batches a rank, by a program that two ranks run.
fn gradient_norm(program: &Program) -> f64 {
    let degrees =
        Degrees { pipeline: 1, data_replicate: 1, data_shard: 2, context: 1, tensor: 1, expert: 1 };
    let mesh = &Mesh::new(degrees, 2).expect("a mesh");
    let rank = move |world: World| {
        let groups = Groups::new(&world, mesh, &ModelSplit::default()).expect("groups");
        let (model, device) = (model(), Device::flex());
        let layout = Layout::flat(&model, groups.shard.rank(), 2);
        let parameters = ParameterStore::initial(&model, 1, layout, &device).expect("parameters");
        let executor = Executor::new(model, parameters, device, Precision::F32, groups);
        let first = 20 * world.rank() as i64;
        let contexts = [0, 7].map(|i| {
            let tokens = [1, 2, 3, 4].map(|token| first + i + token);
            context(&batch(4, &tokens, &tokens.map(|token| token + 1)), HeadOutput::Loss)
        });
        let gradients = executor.gradients(program, &contexts, 16).expect("gradients");
        executor.gradient_norm(&gradients).expect("a norm")
    };
    std::thread::scope(|scope| {
        let worlds = World::local(2, Duration::from_secs(60));
        let ranks: Vec<_> =
            worlds.into_iter().map(|world| scope.spawn(move || rank(world))).collect();
        let norms: Vec<f64> =
            ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect();
        assert_eq!(norms[0].to_bits(), norms[1].to_bits());
        norms[0]
    })
}

#[test]
fn the_strategy_of_the_page_trains_as_the_others() {
    let units = model().units.len();
    for micro_batches in [1, 2, 5] {
        check::check(&breadth_first(units, micro_batches))
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let strategy = Strategy { micro_batches: 2, ..Strategy::default() };
    let [ours, theirs] = [breadth_first(units, 2), training(units, &strategy)]
        .map(|program| gradient_norm(&program));
    assert!(ours > 0.1 && (ours / theirs - 1.0).abs() < 1e-6, "{ours} {theirs}");
}
