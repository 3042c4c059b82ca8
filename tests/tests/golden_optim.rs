//! AdamW, Muon and clipping against float64.
//!
//! Golden matrices are `[out, in]` as PyTorch's; ours are `[in, out]`.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};
use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::config::{MuonAdjustLr, OptimizerConfig, OptimizerGroupConfig, OptimizerKind};
use burn_titan_core::executor::{GradientStore, Layout, ParameterStore};
use burn_titan_core::model::{
    Context, Initial, Model, ModuleUnit, ParameterRole, PlanError, Stream, UnitModule,
};
use burn_titan_core::optim::{MuonRule, Optimizer, clip_factor, muon_update};
use burn_titan_kernels::{AdamwStep, adamw};
use burn_titan_parallel::OneRank;
use burn_titan_tests::golden::{self, numbers};
use burn_titan_tests::numbers::{relative, tensor, transposed, values, worst};
use burn_titan_tests::tiny;
use serde_json::Value;

/// The golden parameters, with their golden shapes.
const SHAPES: [(&str, &[usize]); 3] = [("w", &[8, 6]), ("tall", &[12, 5]), ("bias", &[7])];

/// A golden parameter's numbers in our layout.
fn ours(numbers: &[f64], shape: &[usize]) -> Vec<f64> {
    match *shape {
        [rows, columns] => transposed(numbers, [rows, columns]),
        _ => numbers.to_vec(),
    }
}

/// The golden numbers are exact in f32 where they are inputs.
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

fn flat(values: &[f64]) -> Tensor<1> {
    tensor(&narrow(values), [values.len()])
}

/// The golden parameters as a module, in our layout.
#[derive(Module, Debug)]
struct Toy {
    w: Param<Tensor<2>>,
    tall: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl UnitModule for Toy {
    fn forward(&self, input: Stream, _: &Context) -> Stream {
        input
    }
}

fn toy() -> Model {
    fn lazy<const D: usize>(shape: [usize; D]) -> Param<Tensor<D>> {
        let zeros = move |device: &Device, _: bool| Tensor::zeros(shape, device);
        Param::uninitialized(ParamId::new(), zeros, Device::flex(), true, shape.into())
    }
    let module = Toy { w: lazy([6, 8]), tall: lazy([5, 12]), bias: lazy([7]) };
    Model {
        config: Value::Null,
        training_fields: &[],
        units: vec![ModuleUnit::boxed("toy", "", module)],
        vocab_size: 1,
        max_seq_len: 1,
        dim: 1,
        attention_width: 0,
        initial: Box::new(|_| Initial::Zeros),
        embedding: "",
        tensor_plan: Box::new(|| Err(PlanError::None)),
        role: Box::new(|_| ParameterRole::Dense),
        experts: None,
        shares_sequences: false,
    }
}

/// The toy's parameters at their golden start.
fn start(model: &Model, golden: &Value) -> ParameterStore {
    let mut parameters =
        ParameterStore::initial(model, 0, Layout::flat(model, 0, 1), &Device::flex())
            .expect("parameters");
    for ((name, shape), parameter) in SHAPES.into_iter().zip(parameters.iter_mut()) {
        assert_eq!(parameter.name(), name);
        if let Some(numbers) = golden.get(name).map(numbers) {
            parameter.update(|_| flat(&ours(&numbers, shape)));
        }
    }
    parameters
}

fn gradients(golden: &Value) -> GradientStore {
    let mut gradients = GradientStore::default();
    for (name, shape) in SHAPES {
        if let Some(numbers) = golden.get(name).map(numbers) {
            gradients.put(name, flat(&ours(&numbers, shape)));
        }
    }
    gradients
}

/// Compares a parameter and its optimizer state, named `<parameter>.<state>`, with golden ones.
fn compare(got: &[HostTensor], golden: &Value, keys: &[(&str, &str)], tolerance: f64) -> f64 {
    let mut largest = 0.0_f64;
    for (name, shape) in SHAPES {
        let Some(golden) = golden.get(name) else { continue };
        for (key, suffix) in keys {
            let tensor = got.iter().find(|t| t.name() == format!("{name}{suffix}")).unwrap();
            let want = ours(&numbers(&golden[key]), shape);
            let difference = worst(&tensor.to_f32().unwrap(), &want);
            assert!(difference < tolerance, "{name}, {key}: {difference:e}");
            largest = largest.max(difference);
        }
    }
    largest
}

// Parameters are of order 1 and below 4, where f32 has units of 1.2e-7 to 2.4e-7: a step rounds a
// parameter a few times, so five steps may move it by some of these units. Measured: 2.9e-7.
const ADAMW_TOLERANCE: f64 = 1e-6;

#[test]
fn adamw_follows_five_golden_steps() {
    let golden = golden::json("optim/adamw_5steps.json");
    for (name, _) in SHAPES {
        let parameter = numbers(&golden["param0"][name]);
        let zeros = flat(&vec![0.0; parameter.len()]);
        let mut state = [flat(&parameter), zeros.clone(), zeros];
        for step in 1..=5_usize {
            let [parameter, first, second] = state;
            let gradient = flat(&numbers(&golden["grads"][step - 1][name]));
            state = adamw(parameter, gradient, first, second, golden_step(&golden, step));
            let want = &golden["after_step"][step - 1][name];
            for (got, key) in state.iter().zip(["param", "exp_avg", "exp_avg_sq"]) {
                let difference = worst(&values(got.clone()), &numbers(&want[key]));
                assert!(difference < ADAMW_TOLERANCE, "{name}, {key}: {difference:e}");
            }
        }
    }
}

fn golden_step(golden: &Value, step: usize) -> AdamwStep {
    let hyper = |key: &str| golden["hyper"][key].as_f64().unwrap();
    let betas = numbers(&golden["hyper"]["betas"]);
    AdamwStep {
        lr: hyper("lr"),
        beta1: betas[0],
        beta2: betas[1],
        eps: hyper("eps"),
        weight_decay: hyper("weight_decay"),
        step: step as u64,
        gradient_scale: 1.0,
    }
}

#[test]
fn the_optimizer_follows_five_golden_adamw_steps() {
    let golden = golden::json("optim/adamw_5steps.json");
    let step = golden_step(&golden, 1);
    // Twice the rate at a factor of a half, and twice the gradients scaled by a half: the same numbers.
    let config = OptimizerConfig {
        name: OptimizerKind::Adamw,
        lr: step.lr * 2.0,
        beta1: step.beta1,
        beta2: step.beta2,
        eps: step.eps,
        weight_decay: step.weight_decay,
        ..OptimizerConfig::default()
    };
    let model = toy();
    let mut parameters = start(&model, &golden["param0"]);
    let specs = model.parameters();
    let mut optimizer = Optimizer::new(&config, &specs).unwrap();
    let mut largest = 0.0_f64;
    for step in 0..5 {
        let mut twice = gradients(&golden["grads"][step]);
        for (name, _) in SHAPES {
            let gradient = twice.get(name).unwrap();
            twice.accumulate(name, gradient);
        }
        optimizer.step(&mut parameters, &mut twice, 0.5, 0.5, &OneRank).unwrap();
        let want = &golden["after_step"][step];
        let state = optimizer.to_host(&specs).unwrap();
        let keys = [("exp_avg", ".exp_avg"), ("exp_avg_sq", ".exp_avg_sq")];
        let moments = compare(&state, want, &keys, ADAMW_TOLERANCE);
        let values = parameters.to_host().unwrap();
        largest = largest.max(moments).max(compare(&values, want, &[("param", "")], 1e-6));
    }
    println!("AdamW: {largest:.2e}");
    assert_eq!(optimizer.updates(), 5);
}

fn muon_rules() -> [(&'static str, MuonAdjustLr); 2] {
    [("original", MuonAdjustLr::Original), ("match_rms_adamw", MuonAdjustLr::MatchRmsAdamw)]
}

// A Newton-Schulz iteration multiplies small singular values by up to 3.4445, five of them by 485, and
// rounding errors in their directions with them; the update is then scaled by lr times ratio, 0.014 to
// 0.03 here. So a rounding of f32 (6e-8) may come out as 9e-7 a step; measured after five: 4.4e-7.
const MUON_TOLERANCE: f64 = 4e-6;

#[test]
fn the_optimizer_follows_five_golden_muon_steps() {
    let golden = golden::json("optim/muon_5steps.json");
    for (name, adjust_lr) in muon_rules() {
        let run = &golden["runs"][name];
        let hyper = |key: &str| run["hyper"][key].as_f64().unwrap();
        let bias = OptimizerGroupConfig {
            pattern: "bias".into(),
            name: Some(OptimizerKind::Adamw),
            lr: None,
            weight_decay: None,
        };
        let config = OptimizerConfig {
            name: OptimizerKind::Muon,
            lr: hyper("lr"),
            weight_decay: hyper("weight_decay"),
            momentum: hyper("momentum"),
            nesterov: run["hyper"]["nesterov"].as_bool().unwrap(),
            ns_steps: run["hyper"]["ns_steps"].as_u64().unwrap() as usize,
            adjust_lr,
            groups: vec![bias],
            ..OptimizerConfig::default()
        };
        let model = toy();
        let mut parameters = start(&model, &golden["param0"]);
        let specs = model.parameters();
        let mut optimizer = Optimizer::new(&config, &specs).unwrap();
        let mut largest = [0.0_f64; 2];
        for step in 0..5 {
            let mut gradients = gradients(&golden["grads"][step]);
            optimizer.step(&mut parameters, &mut gradients, 1.0, 1.0, &OneRank).unwrap();
            let want = &run["f64_after_step"][step];
            let state = optimizer.to_host(&specs).unwrap();
            let values = parameters.to_host().unwrap();
            let moved = compare(&values, want, &[("param", "")], MUON_TOLERANCE);
            let momentum = compare(&state, want, &[("momentum", ".momentum")], 1e-6);
            largest = [largest[0].max(moved), largest[1].max(momentum)];
        }
        println!("Muon, {name}: parameters {:.2e}, momentum {:.2e}", largest[0], largest[1]);
    }
}

/// NS of a transposed matrix is the transposed result, and `match_rms_adamw` does not know which side
/// is which: so the golden layout gives the golden numbers too, through the branch for tall matrices.
#[test]
fn muon_follows_the_golden_steps_on_tall_matrices() {
    let golden = golden::json("optim/muon_5steps.json");
    let run = &golden["runs"]["match_rms_adamw"];
    let rule = MuonRule {
        lr: 2e-2,
        weight_decay: 0.1,
        momentum: 0.95,
        nesterov: true,
        ns_steps: 5,
        adjust_lr: MuonAdjustLr::MatchRmsAdamw,
    };
    for (name, shape) in [("w", [8, 6]), ("tall", [12, 5])] {
        let mut value = flat(&numbers(&golden["param0"][name]));
        let mut momentum = value.zeros_like();
        for step in 0..5 {
            let gradient = flat(&numbers(&golden["grads"][step][name]));
            (value, momentum) = muon_update(shape, value, gradient, momentum, &rule);
            let want = numbers(&run["f64_after_step"][step][name]["param"]);
            let difference = worst(&values(value.clone()), &want);
            assert!(difference < MUON_TOLERANCE, "{name}, step {step}: {difference:e}");
        }
    }
}

#[test]
fn clipping_is_that_of_the_golden_cases() {
    let golden = golden::json("optim/clip_grad_norm.json");
    let model = toy();
    let parameters = start(&model, &golden["grads"]);
    let executor = tiny::executor(model, parameters);
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let gradients = gradients(&golden["grads"]);
        let max_norm = case["max_norm"].as_f64().unwrap();
        // The norm is one f32 number: 6e-8 of itself, and its root halves the error of its square.
        let norm = executor.gradient_norm(&gradients).unwrap();
        let want = case["total_norm"].as_f64().unwrap();
        assert!((norm / want - 1.0).abs() < 2e-7, "norm {norm} instead of {want}");
        let factor = clip_factor(want, max_norm);
        let want = case["coef"].as_f64().unwrap();
        assert!((factor / want - 1.0).abs() < 1e-14, "factor {factor} instead of {want}");
        for (name, shape) in SHAPES {
            let clipped = values(gradients.get(name).unwrap() * factor);
            let want = ours(&numbers(&case["clipped"][name]), shape);
            assert!(relative(&clipped, &want) < 2e-7);
        }
    }
    assert_eq!(clip_factor(1e9, 0.0), 1.0);
}
