//! `bench loss`: the linear layer to the vocabulary with its cross-entropy, which never holds all logits.

use burn::tensor::{Int, Tensor, TensorData};
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::cross_entropy::logits_held;
use burn_titan_kernels::linear_cross_entropy;

use super::arguments::LossArguments;
use super::ceilings::Ceilings;
use super::measure::{Stopwatch, Timing};
use super::report::{self, Row};

pub fn run(arguments: &LossArguments) -> Result<(), TrainError> {
    let stopwatch = Stopwatch::new(&arguments.measure, arguments.dtype)?;
    for sizes in &arguments.shapes {
        stopwatch.fits(memory(*sizes, &stopwatch), "--shape")?;
    }
    let ceilings = Ceilings::measure(&stopwatch)?;
    let mut rows = Vec::new();
    for sizes in &arguments.shapes {
        rows.push(forward(*sizes, &stopwatch)?);
        rows.push(forward_and_backward(*sizes, &stopwatch)?);
    }
    report::print("loss", &stopwatch, &ceilings, &rows, arguments.measure.json.as_deref())
}

/// Validation and evaluation.
fn forward(sizes: [usize; 3], stopwatch: &Stopwatch) -> Result<Row, TrainError> {
    let ([hidden, weight], targets) = inputs(sizes, stopwatch);
    let run = || linear_cross_entropy(hidden.clone(), weight.clone(), targets.clone());
    stopwatch.check(run())?;
    let timing = stopwatch.time(run)?;
    Ok(row("forward", sizes, timing, 1.0, stopwatch))
}

/// Training: the gradients are computed with the loss.
fn forward_and_backward(sizes: [usize; 3], stopwatch: &Stopwatch) -> Result<Row, TrainError> {
    let (leaves, targets) = inputs(sizes, stopwatch);
    let [hidden, weight] = leaves.map(|leaf| leaf.autodiff().require_grad());
    let targets = targets.autodiff();
    let run = || linear_cross_entropy(hidden.clone(), weight.clone(), targets.clone()).backward();
    if let Some(gradient) = hidden.grad(&run()) {
        stopwatch.check(gradient)?;
    }
    let timing = stopwatch.time(run)?;
    Ok(row("forward+backward", sizes, timing, 3.0, stopwatch))
}

/// Hidden states, weight and targets.
fn inputs(
    [tokens, vocab, dim]: [usize; 3],
    stopwatch: &Stopwatch,
) -> ([Tensor<2>; 2], Tensor<1, Int>) {
    let leaves = [stopwatch.noise([tokens, dim]), stopwatch.noise([dim, vocab])];
    let targets: Vec<i32> = (0..tokens).map(|token| (token * 7919 % vocab) as i32).collect();
    let targets = TensorData::new(targets, [tokens]);
    (leaves, Tensor::from_data(targets, &stopwatch.device))
}

/// A product of logits is made once in the forward, and two more in the backward.
fn row(
    operation: &'static str,
    [tokens, vocab, dim]: [usize; 3],
    timing: Timing,
    products: f64,
    stopwatch: &Stopwatch,
) -> Row {
    let [m, n, k] = [tokens, vocab, dim].map(|size| size as f64);
    // Inputs are read once, and in the backward their gradients are written.
    let passes = if products > 1.0 { 2.0 } else { 1.0 };
    Row {
        operation,
        sizes: vec![("tokens", tokens), ("vocab", vocab), ("dim", dim)],
        timing,
        flops: Some(products * 2.0 * m * n * k),
        bytes: passes * (m * k + k * n) * stopwatch.dtype.size() as f64,
    }
}

/// Inputs, their gradients and the logits that are held at once.
fn memory([tokens, vocab, dim]: [usize; 3], stopwatch: &Stopwatch) -> f64 {
    let elements = (tokens + vocab) as f64 * dim as f64 * 2.0 + logits_held(tokens, vocab) as f64;
    elements * stopwatch.dtype.size() as f64
}
