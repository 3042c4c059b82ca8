//! The golden Qwen3 models, one dense and one with experts, and the golden DeepSeek-V3: logits, loss, every gradient and
//! every choice of experts against float64, and the sizes of Qwen3 that were published.

use burn_titan_core::config::OptimizerConfig;
use burn_titan_core::data::Batch;
use burn_titan_core::executor::{Executor, StepRule};
use burn_titan_core::model::{
    Context, HeadOutput, ModelFamily, ParameterRole, ParameterSpec, Stream,
};
use burn_titan_core::optim::Optimizer;
use burn_titan_models::hf::{HuggingFace, Names};
use burn_titan_models::{DeepSeekV3Config, Qwen3, Qwen3Config, Qwen3MoeConfig};
use burn_titan_parallel::Program;
use burn_titan_parallel::step::{self, Strategy};
use burn_titan_tests::golden::{self, Tensors};
use burn_titan_tests::numbers::{relative, values, worst};
use burn_titan_tests::tiny::{self, batch, documents, named, next_tokens};

const SEQ: usize = 32;

/// A golden model.
struct Golden {
    folder: &'static str,
    executor: fn() -> Executor,
    names: Names,
}

const MODELS: [Golden; 3] = [
    Golden { folder: "qwen3_tiny", executor: tiny::qwen3, names: Qwen3Config::NAMES },
    Golden { folder: "qwen3_moe_tiny", executor: tiny::qwen3_moe, names: Qwen3MoeConfig::NAMES },
    Golden {
        folder: "deepseek_v3_tiny",
        executor: tiny::deepseek_v3,
        names: DeepSeekV3Config::NAMES,
    },
];

impl Golden {
    fn tensors(&self) -> Tensors {
        Tensors::open(&format!("{}/golden.safetensors", self.folder))
    }

    /// The golden step cut in two ways: both rows at once, and as documents of one row.
    fn layouts(&self) -> [(String, Batch); 2] {
        let tokens = self.tensors().integers("input_ids");
        let targets = next_tokens(SEQ, &tokens);
        [
            ("two rows", batch(SEQ, &tokens, &targets)),
            ("two documents in a row", documents(&[SEQ, SEQ], &tokens, &targets)),
        ]
        .map(|(name, batch)| (format!("{}, {name}", self.folder), batch))
    }
}

fn context(batch: &Batch, head: HeadOutput) -> Context {
    tiny::context(batch, head)
}

fn program(units: usize) -> Program {
    step::training(units, &Strategy::default())
}

#[test]
fn logits_are_within_2e_5() {
    for model in &MODELS {
        let want = model.tensors().floats("logits");
        for (name, batch) in model.layouts() {
            let context = context(&batch, HeadOutput::Logits);
            let logits = match (model.executor)().forward(&context).unwrap() {
                Some(Stream::Logits(logits)) => values(logits),
                other => panic!("asked for logits, got {other:?}"),
            };
            let difference = worst(&logits, &want);
            println!("logits, {name}: {difference:.2e}");
            assert!(difference < 2e-5, "{name}: {difference:e}");
        }
    }
}

#[test]
fn loss_and_gradient_norm_are_within_1e_6() {
    for model in &MODELS {
        let golden = golden::json(&format!("{}/golden.json", model.folder));
        let loss = golden["loss_f64"].as_f64().unwrap();
        let norm = golden["grad_norm_f64"].as_f64().unwrap();
        for (name, batch) in model.layouts() {
            let mut executor = (model.executor)();
            let program = program(executor.model().units.len());
            let parameters = executor.model().parameters();
            let mut optimizer = Optimizer::new(&OptimizerConfig::default(), &parameters).unwrap();
            let rule = StepRule { lr_factor: 1.0, max_grad_norm: 1.0 };
            let contexts = [context(&batch, HeadOutput::Loss)];
            let valid = batch.valid_tokens;
            let step =
                executor.train_step(&program, &contexts, valid, &mut optimizer, rule).unwrap();
            let (by_loss, by_norm) =
                ((step.loss - loss).abs(), (step.grad_norm / norm - 1.0).abs());
            println!("{name}: loss {by_loss:.2e}, relative gradient norm {by_norm:.2e}");
            assert!(by_loss < 1e-6, "{name}: loss {} instead of {loss}", step.loss);
            assert!(by_norm < 1e-6, "{name}: norm {} instead of {norm}", step.grad_norm);
        }
    }
}

#[test]
fn every_gradient_is_within_1e_5() {
    for model in &MODELS {
        let golden = model.tensors();
        let wanted = golden.names().filter(|name| name.starts_with("grad.")).count();
        let executor = (model.executor)();
        let program = program(executor.model().units.len());
        for (name, batch) in model.layouts() {
            let contexts = [context(&batch, HeadOutput::Loss)];
            let gradients = executor.gradients(&program, &contexts, batch.valid_tokens).unwrap();
            let theirs = |spec: ParameterSpec| {
                let gradient = gradients.get(&spec.name).expect("a gradient of each parameter");
                named(&model.names, &spec.name, &spec.shape, &values(gradient))
            };
            // What balances the choice of experts has none.
            let model = executor.model();
            let learned =
                |spec: &ParameterSpec| (model.role)(&spec.name) != ParameterRole::RouterBias;
            let theirs: Vec<_> =
                model.parameters().into_iter().filter(learned).flat_map(theirs).collect();
            assert_eq!(theirs.len(), wanted);
            let mut largest = (0.0, "");
            for (tensor, gradient) in &theirs {
                let want = golden.floats(&format!("grad.{tensor}"));
                // An expert that no token meets.
                if want.iter().all(|value| *value == 0.0) {
                    assert_eq!(gradient, &want, "{name}, {tensor}");
                    continue;
                }
                let difference = relative(gradient, &want);
                assert!(difference < 1e-5, "{name}, {tensor}: {difference:e}");
                if difference > largest.0 {
                    largest = (difference, tensor);
                }
            }
            println!("gradients, {name}: {:.2e} of {}", largest.0, largest.1);
        }
    }
}

/// The tokens of each expert of each layer.
fn loads(executor: &Executor, tokens: &[i64]) -> Vec<Vec<usize>> {
    let context = context(&batch(tokens.len(), tokens, tokens), HeadOutput::Logits);
    executor.forward(&context).unwrap();
    let mut loads = vec![vec![]; 2];
    context.expert_loads().into_iter().for_each(|(layer, _, count)| loads[layer].push(count));
    loads
}

/// What a token chooses is what its row up to it has chosen, less what the row before it has.
#[test]
fn every_token_chooses_the_same_experts() {
    // Dense layers come before those with experts.
    for (model, dense) in [(&MODELS[1], 0), (&MODELS[2], 1)] {
        let (executor, golden) = ((model.executor)(), model.tensors());
        let tokens = golden.integers("input_ids");
        let golden = |layer: usize, what: &str| {
            let layer = dense + layer;
            golden.integers(&format!("router.model.layers.{layer}.mlp.gate.{what}"))
        };
        let mut chosen = vec![vec![]; 2];
        let mut all = vec![vec![0; 8]; 2];
        for row in tokens.chunks_exact(SEQ) {
            let mut before = vec![vec![0; 8]; 2];
            for end in 1..=SEQ {
                let loads = loads(&executor, &row[..end]);
                for (layer, (loads, before)) in loads.iter().zip(&before).enumerate() {
                    for (expert, (load, before)) in loads.iter().zip(before).enumerate() {
                        chosen[layer].extend(vec![expert as i64; load - before]);
                    }
                }
                before = loads;
            }
            for (all, row) in all.iter_mut().flatten().zip(before.iter().flatten()) {
                *all += *row as i64;
            }
        }
        for layer in 0..2 {
            let name = format!("{}, layer {layer}", model.folder);
            assert_eq!(chosen[layer], golden(layer, "indices"), "{name}");
            assert_eq!(all[layer], golden(layer, "tokens_per_expert"), "{name}");
        }
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
