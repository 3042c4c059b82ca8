//! Ranks that share a model hold it once between them. The only test of this file, because it counts what the
//! whole process allocates.

use std::sync::Barrier;
use std::time::Duration;

use burn::tensor::Device;
use burn_titan_core::config::OptimizerConfig;
use burn_titan_core::executor::{
    Executor, Groups, Layout, ModelSplit, ParameterStore, Precision, StepRule,
};
use burn_titan_core::model::{HeadOutput, Model, ModelFamily};
use burn_titan_core::optim::Optimizer;
use burn_titan_models::Llama3;
use burn_titan_parallel::step::{self, Strategy};
use burn_titan_parallel::{Degrees, Mesh, World};
use burn_titan_tests::counting::Counting;
use burn_titan_tests::tiny::{batch, context};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Sixteen blocks and a small vocabulary, so that no unit is a large part of it.
fn model() -> Model {
    let family = Llama3::default();
    let sizes = json!({"n_layers": 16, "dim": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64,
        "ffn_dim": 1024, "vocab_size": 331});
    let sizes = family.resolve("debug", sizes.as_object().expect("an object")).expect("sizes");
    family.build(&sizes, "fused").expect("a model")
}

/// Bytes of all ranks together.
#[derive(Debug)]
struct Held {
    /// Parameters, gradients and optimizer state, between steps.
    at_rest: usize,
    /// At most while the parameters were made.
    building: usize,
    /// At most in a step.
    stepping: usize,
}

/// What `ranks` ranks hold that share the model.
fn held(ranks: usize) -> Held {
    let degrees = Degrees {
        pipeline: 1,
        data_replicate: 1,
        data_shard: ranks as i64,
        context: 1,
        tensor: 1,
        expert: 1,
    };
    let mesh = &Mesh::new(degrees, ranks).expect("a mesh");
    let (together, before) = (&Barrier::new(ranks), ALLOCATOR.in_use());
    // On the first rank, while the others wait.
    let measured = |is_first: bool, forget: bool| {
        together.wait();
        let both = (ALLOCATOR.in_use() - before, ALLOCATOR.peak().saturating_sub(before));
        if is_first && forget {
            ALLOCATOR.forget_peak();
        }
        together.wait();
        both
    };
    let measured = &measured;
    ALLOCATOR.forget_peak();
    let rank = move |world: World| {
        let is_first = world.rank() == 0;
        let groups = Groups::new(&world, mesh, &ModelSplit::default()).expect("groups");
        let (model, device) = (model(), Device::flex());
        let parameters = ParameterStore::initial(
            &model,
            1,
            Layout::flat(&model, groups.shard.rank(), ranks),
            &device,
        );
        let parameters = parameters.expect("parameters");
        let (_, building) = measured(is_first, true);
        let specs = model.parameters();
        let strategy = Strategy {
            recompute: true,
            reshard_after_forward: true,
            reduce_every_micro_batch: true,
            ..Strategy::default()
        };
        let program = step::training(model.units.len(), &strategy);
        let mut optimizer = Optimizer::new(&OptimizerConfig::default(), &specs).expect("AdamW");
        let mut executor = Executor::new(model, parameters, device, Precision::F32, groups);
        let contexts = [context(&batch(4, &[1, 2, 3, 4], &[2, 3, 4, 5]), HeadOutput::Loss)];
        let rule = StepRule { lr_factor: 1.0, max_grad_norm: 1.0 };
        let valid = 4 * ranks;
        // The moments are there from the second step on.
        for _ in 0..2 {
            let step = executor.train_step(&program, &contexts, valid, &mut optimizer, rule);
            step.expect("a step");
        }
        let (_, stepping) = measured(is_first, false);
        let gradients = executor.gradients(&program, &contexts, valid).expect("gradients");
        let (at_rest, _) = measured(is_first, false);
        drop(gradients);
        Held { at_rest, building, stepping }
    };
    std::thread::scope(|scope| {
        let worlds = World::local(ranks, Duration::from_secs(60));
        let ranks: Vec<_> =
            worlds.into_iter().map(|world| scope.spawn(move || rank(world))).collect();
        let mut held = ranks.into_iter().map(|rank| rank.join().expect("no rank panics"));
        held.next().expect("a first rank")
    })
}

#[test]
fn four_ranks_hold_the_model_once() {
    let parameters = 4 * model().parameter_count() as usize;
    // What is made once for the process is counted for neither.
    held(1);
    let [one, four] = [1, 4].map(held);
    println!("parameters {parameters}; one rank {one:?}; four ranks {four:?}");
    // Parameters, gradients and two moments.
    assert!(one.at_rest > 4 * parameters && one.at_rest < 4 * parameters * 21 / 20, "{one:?}");
    // Of each rank, within 5% of a quarter.
    assert!(four.at_rest.abs_diff(one.at_rest) < one.at_rest / 20, "{one:?} {four:?}");
    assert!(four.building < parameters * 21 / 20, "{four:?}");
    // No rank held a full-size copy at any time: what a rank holds for a while is less than half of one.
    let above = four.stepping.saturating_sub(four.at_rest) / 4;
    println!(
        "in a step {:.2} of the parameters above its quarter a rank",
        above as f64 / parameters as f64
    );
    assert!(above > 0 && above < parameters / 2, "{above} bytes of {parameters} a rank");
}
