//! `bench matmul`: Burn's matrix product, which all linear layers are.

use burn_titan_core::trainer::TrainError;

use super::arguments::MatmulArguments;
use super::ceilings::Ceilings;
use super::measure::Stopwatch;
use super::report::{self, Row};

pub fn run(arguments: &MatmulArguments) -> Result<(), TrainError> {
    let stopwatch = Stopwatch::new(&arguments.measure, arguments.dtype)?;
    for shape in &arguments.shapes {
        stopwatch.fits(bytes(*shape, &stopwatch), "--shape")?;
    }
    let ceilings = Ceilings::measure(&stopwatch)?;
    let rows: Result<Vec<Row>, TrainError> =
        arguments.shapes.iter().map(|shape| product(*shape, &stopwatch)).collect();
    report::print("matmul", &stopwatch, &ceilings, &rows?, arguments.measure.json.as_deref())
}

fn product([m, n, k]: [usize; 3], stopwatch: &Stopwatch) -> Result<Row, TrainError> {
    let (a, b) = (stopwatch.noise([m, k]), stopwatch.noise([k, n]));
    let product = || a.clone().matmul(b.clone());
    stopwatch.check(product())?;
    let timing = stopwatch.time(product)?;
    Ok(Row {
        operation: "matmul",
        sizes: vec![("m", m), ("n", n), ("k", k)],
        timing,
        flops: Some(2.0 * m as f64 * n as f64 * k as f64),
        bytes: bytes([m, n, k], stopwatch),
    })
}

/// Both factors are read once, the product is written once.
fn bytes([m, n, k]: [usize; 3], stopwatch: &Stopwatch) -> f64 {
    let [m, n, k] = [m, n, k].map(|size| size as f64);
    (m * k + k * n + m * n) * stopwatch.dtype.size() as f64
}
