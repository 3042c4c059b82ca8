//! The golden Llama: logits, loss and every gradient against float64, under every way of running a
//! step that must not change them.

use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::config::OptimizerConfig;
use burn_titan_core::data::Batch;
use burn_titan_core::executor::{Executor, StepOutcome, StepRule};
use burn_titan_core::model::{Context, HeadOutput, ModelFamily, ParameterSpec, Stream};
use burn_titan_core::optim::Optimizer;
use burn_titan_models::Llama3;
use burn_titan_parallel::step::{self, Strategy};
use burn_titan_tests::golden::{self, Tensors};
use burn_titan_tests::numbers::{bits, relative, transposed, values, worst};
use burn_titan_tests::tiny::{self, batch, documents, hugging_face, next_tokens};
use serde_json::{Value, json};

const SEQ: usize = 32;

/// The golden tokens and their targets, `[2, SEQ]`.
fn tokens() -> (Vec<i64>, Vec<i64>) {
    let tokens = Tensors::open("llama_tiny/golden.safetensors").integers("input_ids");
    let targets = next_tokens(SEQ, &tokens);
    (tokens, targets)
}

/// The same step in the ways that it can be cut: both rows at once, a row at a time, and both rows as
/// documents of one.
fn layouts() -> [(&'static str, Vec<Batch>); 3] {
    let (tokens, targets) = tokens();
    let rows = tokens.chunks(SEQ).zip(targets.chunks(SEQ));
    [
        ("one micro-batch", vec![batch(SEQ, &tokens, &targets)]),
        ("two micro-batches", rows.map(|(x, y)| batch(SEQ, x, y)).collect()),
        ("two documents in a row", vec![documents(&[SEQ, SEQ], &tokens, &targets)]),
    ]
}

fn contexts(batches: &[Batch]) -> (Vec<Context>, usize) {
    let valid = batches.iter().map(|batch| batch.valid_tokens).sum();
    (batches.iter().map(|batch| tiny::context(batch, HeadOutput::Loss)).collect(), valid)
}

/// Every gradient under its Hugging Face name and in that layout.
fn gradients(executor: &Executor, batches: &[Batch], recompute: bool) -> Vec<(String, Vec<f32>)> {
    let (contexts, valid) = contexts(batches);
    let program = step::training(
        executor.model().units.len(),
        &Strategy { micro_batches: batches.len(), recompute, ..Strategy::default() },
    );
    let gradients = executor.gradients(&program, &contexts, valid).unwrap();
    let one = |spec: ParameterSpec| {
        let gradient = gradients.get(&spec.name).expect("a gradient of each parameter");
        hugging_face(&spec.name, &spec.shape, &values(gradient))
    };
    executor.model().parameters().into_iter().map(one).collect()
}

/// Loss and gradient norm of a training step.
fn outcome(batches: &[Batch], recompute: bool) -> StepOutcome {
    let mut executor = tiny::llama();
    let (contexts, valid) = contexts(batches);
    let program = step::training(
        executor.model().units.len(),
        &Strategy { micro_batches: batches.len(), recompute, ..Strategy::default() },
    );
    let parameters = executor.model().parameters();
    let mut optimizer = Optimizer::new(&OptimizerConfig::default(), &parameters).unwrap();
    let rule = StepRule { lr_factor: 1.0, max_grad_norm: 1.0 };
    executor.train_step(&program, &contexts, valid, &mut optimizer, rule).unwrap()
}

#[test]
fn logits_are_within_2e_5() {
    let golden = Tensors::open("llama_tiny/golden.safetensors");
    let executor = tiny::llama();
    for (name, batches) in layouts() {
        let mut logits = Vec::new();
        for batch in &batches {
            match executor.forward(&tiny::context(batch, HeadOutput::Logits)).unwrap() {
                Some(Stream::Logits(part)) => logits.extend(values(part)),
                other => panic!("asked for logits, got {other:?}"),
            }
        }
        let difference = worst(&logits, &golden.floats("logits"));
        println!("logits, {name}: {difference:.2e}");
        assert!(difference < 2e-5, "{name}: {difference:e}");
    }
}

#[test]
fn loss_and_gradient_norm_are_within_1e_6() {
    let golden = golden::json("llama_tiny/golden.json");
    let loss = golden["loss_f64"].as_f64().unwrap();
    let norm = golden["grad_norm_f64"].as_f64().unwrap();
    for (name, batches) in layouts() {
        let plain = outcome(&batches, false);
        let (by_loss, by_norm) = ((plain.loss - loss).abs(), (plain.grad_norm / norm - 1.0).abs());
        println!("{name}: loss {by_loss:.2e}, relative gradient norm {by_norm:.2e}");
        assert!(by_loss < 1e-6, "{name}: loss {} instead of {loss}", plain.loss);
        assert!(by_norm < 1e-6, "{name}: norm {} instead of {norm}", plain.grad_norm);
        assert_eq!(outcome(&batches, true), plain, "{name}, recomputed");
    }
}

#[test]
fn a_forward_alone_has_the_loss_of_a_step() {
    let (_, batches) = &layouts()[0];
    let context = tiny::context(&batches[0], HeadOutput::Loss);
    let Some(Stream::Loss(sum)) = tiny::llama().forward(&context).unwrap() else {
        panic!("asked for the loss")
    };
    let loss = f64::from(values(sum)[0]) / batches[0].valid_tokens as f64;
    let golden = golden::json("llama_tiny/golden.json")["loss_f64"].as_f64().unwrap();
    assert!((loss - golden).abs() < 1e-6, "{loss} instead of {golden}");
}

#[test]
fn every_gradient_is_within_1e_5() {
    let golden = Tensors::open("llama_tiny/golden.safetensors");
    let executor = tiny::llama();
    for (name, batches) in layouts() {
        let plain = gradients(&executor, &batches, false);
        assert_eq!(plain.len(), golden.names().filter(|name| name.starts_with("grad.")).count());
        let mut largest = (0.0, "");
        for (parameter, gradient) in &plain {
            let want = golden.floats(&format!("grad.{parameter}"));
            let difference = relative(gradient, &want);
            assert!(difference < 1e-5, "{name}, {parameter}: {difference:e}");
            if difference > largest.0 {
                largest = (difference, parameter);
            }
        }
        println!("gradients, {name}: {:.2e} of {}", largest.0, largest.1);
    }
}

#[test]
fn recomputed_gradients_are_bitwise_the_same() {
    let executor = tiny::llama();
    for (name, batches) in layouts() {
        let plain = gradients(&executor, &batches, false);
        for ((parameter, a), (_, b)) in plain.iter().zip(gradients(&executor, &batches, true)) {
            assert_eq!(bits(a), bits(&b), "{name}, {parameter}");
        }
    }
}

/// With equal values, the gradient of a shared matrix is the sum of those of the two untied ones. The
/// golden model is untied, so this carries its numbers over.
#[test]
fn a_tied_head_gets_the_gradients_of_both_uses() {
    let golden = tiny::llama();
    let mut config = golden.model().config.clone();
    let mut tensors = golden.parameters.to_host().unwrap();
    let embedding = golden.parameters.get("tok_embeddings.weight").unwrap();
    let [vocab, dim] = embedding.local.spec.shape[..] else { panic!("the embedding is a matrix") };
    let output = transposed(&values(embedding.value()), [vocab, dim]);
    tensors.retain(|tensor| tensor.name() != "output.weight");
    tensors.push(HostTensor::from_f32("output.weight", &[dim, vocab], &output).unwrap());

    let (_, batches) = &layouts()[0];
    let run = |config: &Value| {
        let model = Llama3::default().build(config, "fused").unwrap();
        let parameters = tiny::parameters(&model, &tensors);
        gradients(&tiny::executor(model, parameters), batches, false)
    };
    let apart = run(&config);
    config["tie_embeddings"] = json!(true);
    let tied = run(&config);

    let find = |all: &[(String, Vec<f32>)], name: &str| {
        all.iter().find(|(n, _)| n == name).map(|(_, gradient)| gradient.clone())
    };
    assert_eq!(find(&tied, "lm_head.weight"), None);
    for (name, gradient) in &tied {
        let mut want = find(&apart, name).unwrap();
        if name == "model.embed_tokens.weight" {
            let head = find(&apart, "lm_head.weight").unwrap();
            want = want.iter().zip(&head).map(|(a, b)| a + b).collect();
        }
        let difference = relative(gradient, &want);
        assert!(difference < 1e-6, "{name}: {difference:e}");
    }
}
