//! `bench optimizer`: what is done on flat parameters after the backward. All of it is bound by memory.

use burn::tensor::{DType, Tensor};
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::{AdamwStep, adamw, sum_of_squares};

use super::arguments::OptimizerArguments;
use super::ceilings::Ceilings;
use super::measure::Stopwatch;
use super::report::{self, Row};

/// AdamW reads parameter, gradient and both moments, and writes all but the gradient.
pub const ADAMW_BYTES: f64 = 7.0 * 4.0;

pub fn run(arguments: &OptimizerArguments) -> Result<(), TrainError> {
    // Parameters and moments are f32 whatever the format of the model's arithmetic.
    let stopwatch = Stopwatch::new(&arguments.measure, DType::F32)?;
    for elements in &arguments.elements {
        stopwatch.fits(16.0 * *elements as f64, "--elements")?;
    }
    let ceilings = Ceilings::of_memory(&stopwatch);
    let mut rows = Vec::new();
    for elements in &arguments.elements {
        rows.push(update(*elements, &stopwatch)?);
        rows.push(norm(*elements, &stopwatch)?);
    }
    report::print("optimizer", &stopwatch, &ceilings, &rows, arguments.measure.json.as_deref())
}

fn update(elements: usize, stopwatch: &Stopwatch) -> Result<Row, TrainError> {
    let step = AdamwStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        gradient_scale: 1.0,
    };
    let gradient = stopwatch.noise([elements]);
    let zeros = || Tensor::zeros([elements], (&stopwatch.device, DType::F32));
    // Given up and taken back at every step, so that the update is in place, as in training.
    let update = |[p, m, v]: [Tensor<1>; 3]| adamw(p, gradient.clone(), m, v, step);
    let mut state = Some(update([stopwatch.noise([elements]), zeros(), zeros()]));
    if let Some([parameter, ..]) = &state {
        stopwatch.check(parameter.clone())?;
    }
    let timing = stopwatch.time(|| state = state.take().map(update))?;
    let bytes = ADAMW_BYTES * elements as f64;
    Ok(Row { operation: "AdamW", sizes: sizes(elements), timing, flops: None, bytes })
}

fn norm(elements: usize, stopwatch: &Stopwatch) -> Result<Row, TrainError> {
    let gradient = stopwatch.noise([elements]);
    let sum = || sum_of_squares(gradient.clone());
    stopwatch.check(sum())?;
    let timing = stopwatch.time(sum)?;
    Ok(Row {
        operation: "sum of squares",
        sizes: sizes(elements),
        timing,
        flops: Some(2.0 * elements as f64),
        bytes: 4.0 * elements as f64,
    })
}

fn sizes(elements: usize) -> Vec<(&'static str, usize)> {
    vec![("elements", elements)]
}
