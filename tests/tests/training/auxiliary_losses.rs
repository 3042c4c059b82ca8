//! What experts add to the loss has the gradient that its value says, and is not part of the loss that is told.

use burn::tensor::{Device, Tensor};
use burn_titan_core::config::OptimizerConfig;
use burn_titan_core::executor::{
    Executor, Groups, Layout, ParameterStore, Precision, StepOutcome, StepRule,
};
use burn_titan_core::model::{Context, HeadOutput, ModelFamily};
use burn_titan_core::optim::Optimizer;
use burn_titan_models::Qwen3Moe;
use burn_titan_parallel::step::{self, Strategy};
use burn_titan_tests::tiny::{batch, context};
use serde_json::json;

const PARAMETERS: [&str; 2] = ["layers.0.feed_forward.router.weight", "tok_embeddings.weight"];

/// One block with seven experts of which a token meets two, with these factors.
fn executor([balance, z]: [f64; 2]) -> Executor {
    let sizes = json!({"n_layers": 1, "dim": 20, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6,
        "n_experts": 7, "top_k": 2, "expert_dim": 9, "vocab_size": 31, "load_balance_rate": 0.0,
        "sequence_balance_loss": balance, "router_z_loss": z});
    let family = Qwen3Moe::default();
    let config = family.resolve("debug", sizes.as_object().expect("an object")).expect("sizes");
    let model = family.build(&config, "fused").expect("a model");
    let layout = Layout::flat(&model, 0, 1);
    let parameters = ParameterStore::initial(&model, 1, layout, &Device::flex());
    let mut parameters = parameters.expect("parameters");
    // So that experts differ.
    let router = parameters.get_mut(PARAMETERS[0]).expect("a router");
    router.update(|weight| weight * 20.0);
    Executor::new(model, parameters, Device::flex(), Precision::F32, Groups::one())
}

/// Two micro-batches of two sequences of eight tokens.
fn contexts() -> [Context; 2] {
    let tokens: Vec<i64> = (0..32).map(|i| (i * i + 3 * i) % 31).collect();
    [0, 16].map(|start| {
        let tokens = &tokens[start..start + 16];
        context(&batch(8, tokens, tokens), HeadOutput::Loss)
    })
}

/// A step that moves nothing.
fn outcome(executor: &mut Executor) -> StepOutcome {
    let (model, strategy) = (executor.model(), Strategy::default());
    let program = step::training(
        model.units.len(),
        &Strategy { micro_batches: 2, experts: true, ..strategy },
    );
    let mut optimizer =
        Optimizer::new(&OptimizerConfig::default(), &model.parameters()).expect("AdamW");
    let rule = StepRule { lr_factor: 0.0, max_grad_norm: 0.0 };
    executor.train_step(&program, &contexts(), 32, &mut optimizer, rule).expect("a step")
}

/// The gradients of [`PARAMETERS`].
fn gradients(executor: &Executor) -> [Tensor<1>; 2] {
    let strategy = Strategy { micro_batches: 2, experts: true, ..Strategy::default() };
    let program = step::training(executor.model().units.len(), &strategy);
    let gradients = executor.gradients(&program, &contexts(), 32).expect("gradients");
    PARAMETERS.map(|name| gradients.get(name).expect("a gradient"))
}

fn scalar(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}

#[test]
fn gradients_are_those_of_the_values() {
    let plain = outcome(&mut executor([0.0; 2]));
    assert_eq!(plain.auxiliary_loss, None);
    let without = gradients(&executor([0.0; 2]));
    for factors in [[0.7, 0.0], [0.0, 0.3], [0.7, 0.3]] {
        let mut executor = executor(factors);
        let found = outcome(&mut executor);
        assert_eq!(found.loss, plain.loss, "{factors:?}");
        let added: Vec<Tensor<1>> =
            gradients(&executor).into_iter().zip(without.clone()).map(|(a, b)| a - b).collect();
        let norm = added.iter().map(|x| scalar(x.clone().square().sum())).sum::<f64>().sqrt();
        assert!(norm > 1e-2, "{factors:?}: {norm}");
        // Along the gradient, the value changes by its norm.
        let mut moved = |by: f64| {
            let by_name = |sign: f64, executor: &mut Executor| {
                for (name, direction) in PARAMETERS.iter().zip(&added) {
                    let parameter = executor.parameters.get_mut(name).expect("a parameter");
                    parameter.update(|value| value + direction.clone() * (sign * by / norm));
                }
            };
            by_name(1.0, &mut executor);
            let value = outcome(&mut executor).auxiliary_loss.expect("an auxiliary loss");
            by_name(-1.0, &mut executor);
            value
        };
        let numeric = (moved(2e-3) - moved(-2e-3)) / 4e-3;
        println!("{factors:?}: {norm:.6} {numeric:.6}");
        assert!((numeric - norm).abs() < 5e-3 * norm, "{factors:?}: {norm} {numeric}");
    }
}
