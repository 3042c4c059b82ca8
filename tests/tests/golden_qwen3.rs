//! The golden Qwen3: logits, loss and every gradient against float64, and the sizes that were published.

use burn_titan_core::config::OptimizerConfig;
use burn_titan_core::data::Batch;
use burn_titan_core::executor::StepRule;
use burn_titan_core::model::{Context, HeadOutput, ModelFamily, ParameterSpec, Stream};
use burn_titan_core::optim::Optimizer;
use burn_titan_models::hf::HuggingFace;
use burn_titan_models::{Qwen3, Qwen3Config};
use burn_titan_parallel::Program;
use burn_titan_parallel::step::{self, Strategy};
use burn_titan_tests::golden::{self, Tensors};
use burn_titan_tests::numbers::{relative, values, worst};
use burn_titan_tests::tiny::{self, batch, documents, named, next_tokens};

const SEQ: usize = 32;

/// The golden step cut in two ways: both rows at once, and as documents of one row.
fn layouts() -> [(&'static str, Batch); 2] {
    let tokens = Tensors::open("qwen3_tiny/golden.safetensors").integers("input_ids");
    let targets = next_tokens(SEQ, &tokens);
    [
        ("two rows", batch(SEQ, &tokens, &targets)),
        ("two documents in a row", documents(&[SEQ, SEQ], &tokens, &targets)),
    ]
}

fn context(batch: &Batch, head: HeadOutput) -> Context {
    tiny::context(batch, head)
}

fn program(units: usize) -> Program {
    step::training(units, &Strategy::default())
}

#[test]
fn logits_are_within_2e_5() {
    let want = Tensors::open("qwen3_tiny/golden.safetensors").floats("logits");
    for (name, batch) in layouts() {
        let logits = match tiny::qwen3().forward(&context(&batch, HeadOutput::Logits)).unwrap() {
            Some(Stream::Logits(logits)) => values(logits),
            other => panic!("asked for logits, got {other:?}"),
        };
        let difference = worst(&logits, &want);
        println!("logits, {name}: {difference:.2e}");
        assert!(difference < 2e-5, "{name}: {difference:e}");
    }
}

#[test]
fn loss_and_gradient_norm_are_within_1e_6() {
    let golden = golden::json("qwen3_tiny/golden.json");
    let loss = golden["loss_f64"].as_f64().unwrap();
    let norm = golden["grad_norm_f64"].as_f64().unwrap();
    for (name, batch) in layouts() {
        let mut executor = tiny::qwen3();
        let program = program(executor.model().units.len());
        let parameters = executor.model().parameters();
        let mut optimizer = Optimizer::new(&OptimizerConfig::default(), &parameters).unwrap();
        let rule = StepRule { lr_factor: 1.0, max_grad_norm: 1.0 };
        let contexts = [context(&batch, HeadOutput::Loss)];
        let valid = batch.valid_tokens;
        let step = executor.train_step(&program, &contexts, valid, &mut optimizer, rule).unwrap();
        let (by_loss, by_norm) = ((step.loss - loss).abs(), (step.grad_norm / norm - 1.0).abs());
        println!("{name}: loss {by_loss:.2e}, relative gradient norm {by_norm:.2e}");
        assert!(by_loss < 1e-6, "{name}: loss {} instead of {loss}", step.loss);
        assert!(by_norm < 1e-6, "{name}: norm {} instead of {norm}", step.grad_norm);
    }
}

#[test]
fn every_gradient_is_within_1e_5() {
    let golden = Tensors::open("qwen3_tiny/golden.safetensors");
    let executor = tiny::qwen3();
    let program = program(executor.model().units.len());
    for (name, batch) in layouts() {
        let contexts = [context(&batch, HeadOutput::Loss)];
        let gradients = executor.gradients(&program, &contexts, batch.valid_tokens).unwrap();
        let parameters = executor.model().parameters();
        assert_eq!(
            parameters.len(),
            golden.names().filter(|name| name.starts_with("grad.")).count()
        );
        let mut largest = (0.0, String::new());
        for ParameterSpec { name: parameter, shape } in parameters {
            let gradient = gradients.get(&parameter).expect("a gradient of each parameter");
            let (theirs, gradient) =
                named(&Qwen3Config::NAMES, &parameter, &shape, &values(gradient));
            let difference = relative(&gradient, &golden.floats(&format!("grad.{theirs}")));
            assert!(difference < 1e-5, "{name}, {parameter}: {difference:e}");
            if difference > largest.0 {
                largest = (difference, parameter);
            }
        }
        println!("gradients, {name}: {:.2e} of {}", largest.0, largest.1);
    }
}

/// Parameters as the safetensors of the published models count them, less the copy of a tied head.
const PUBLISHED: [(&str, u64); 7] = [
    ("debug", 6_950_912),
    ("0.6b", 596_049_920),
    ("1.7b", 1_720_574_976),
    ("4b", 4_022_468_096),
    ("8b", 8_190_735_360),
    ("14b", 14_768_307_200),
    ("32b", 32_762_123_264),
];

#[test]
fn every_flavor_has_its_published_size() {
    let family = Qwen3::default();
    assert_eq!(family.flavors(), PUBLISHED.map(|(flavor, _)| flavor));
    for (flavor, count) in PUBLISHED {
        let config = family.resolve(flavor, &serde_json::Map::new()).unwrap();
        let model = family.build(&config, "fused").unwrap();
        assert_eq!(model.parameter_count(), count, "{flavor}");
        let config: Qwen3Config = serde_json::from_value(config).unwrap();
        assert_eq!(config.parameter_count(), count, "{flavor}");
    }
}
