//! `bench grouped`: products of rows with the matrix of their expert, beside one dense product of as many rows.
//!
//! Both are run in turns. The ratio is the rate of the grouped product, or of one of its gradients, over that of the
//! dense product `[m, k] [k, n]`: 1 where it costs nothing that there are many matrices. The grouped one reads, or in
//! the gradient of the weights writes, all matrices where the dense one has one: with few rows, memory is its bound.

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::grouped_matmul::GroupedMatmulOps;
use serde_json::{Value, json};

use super::arguments::GroupedArguments;
use super::measure::{Stopwatch, Timing, name_of};
use super::report;
use crate::output;

pub fn run(arguments: &GroupedArguments) -> Result<(), TrainError> {
    let stopwatch = Stopwatch::new(&arguments.measure, arguments.dtype)?;
    let problems = || {
        let sizes = arguments
            .shapes
            .iter()
            .flat_map(|shape| arguments.experts.iter().map(move |experts| (*shape, *experts)));
        sizes.map(|(shape, experts)| Problem::new(shape, experts, arguments.uneven))
    };
    for problem in problems() {
        stopwatch.fits(problem.elements() * stopwatch.dtype.size() as f64, "--shape")?;
    }
    let mut rows = Vec::new();
    for problem in problems() {
        rows.extend(problem.measure(&stopwatch)?);
    }
    print(&stopwatch, &rows, arguments)
}

/// A product of some rows, each with one of some matrices.
struct Problem {
    rows: usize,
    outputs: usize,
    inputs: usize,
    /// Rows of each expert.
    counts: Vec<usize>,
}

impl Problem {
    fn new([rows, outputs, inputs]: [usize; 3], experts: usize, uneven: bool) -> Self {
        Self { rows, outputs, inputs, counts: counts(rows, experts, uneven) }
    }

    /// Elements of all tensors that are there at once.
    fn elements(&self) -> f64 {
        let [rows, inputs, outputs] = [self.rows, self.inputs, self.outputs].map(|n| n as f64);
        2.0 * (rows * (inputs + outputs) + (self.counts.len() + 1) as f64 * inputs * outputs)
    }

    /// The product and both of its gradients.
    fn measure(&self, stopwatch: &Stopwatch) -> Result<[Row; 3], TrainError> {
        let Self { rows, outputs, inputs, counts } = self;
        let x = stopwatch.noise([*rows, *inputs]);
        let gradient = stopwatch.noise([*rows, *outputs]);
        let weights = stopwatch.noise([counts.len(), *inputs, *outputs]);
        let dense = stopwatch.noise([*inputs, *outputs]);
        let peer = || x.clone().matmul(dense.clone());
        let forward = || product(&x, &weights, counts);
        let input = || input_gradient(&gradient, &weights, counts);
        let weight = || weight_gradient(&x, &gradient, counts);
        Ok([
            self.row("forward", stopwatch, forward, peer)?,
            self.row("input gradient", stopwatch, input, peer)?,
            self.row("weight gradient", stopwatch, weight, peer)?,
        ])
    }

    fn row<const D: usize>(
        &self,
        operation: &'static str,
        stopwatch: &Stopwatch,
        grouped: impl Fn() -> Tensor<D>,
        dense: impl Fn() -> Tensor<2>,
    ) -> Result<Row, TrainError> {
        stopwatch.check(grouped())?;
        stopwatch.check(dense())?;
        let [grouped, dense] = stopwatch.time_in_turns(grouped, dense)?;
        let [rows, outputs, inputs] = [self.rows, self.outputs, self.inputs];
        let experts = self.counts.len();
        let elements = rows * (inputs + outputs) + experts * inputs * outputs;
        Ok(Row {
            operation,
            sizes: [("m", rows), ("n", outputs), ("k", inputs), ("experts", experts)],
            flops: 2.0 * rows as f64 * inputs as f64 * outputs as f64,
            bytes: (elements * stopwatch.dtype.size()) as f64,
            grouped,
            dense,
        })
    }
}

/// The rows of each expert: as even as can be, or the more the higher its number, the last twice the mean.
fn counts(rows: usize, experts: usize, uneven: bool) -> Vec<usize> {
    let share = |expert: usize| match uneven {
        true => (expert as f64 / experts as f64).powi(2),
        false => expert as f64 / experts as f64,
    };
    let end = |expert: usize| (rows as f64 * share(expert)).round() as usize;
    (0..experts).map(|expert| end(expert + 1) - end(expert)).collect()
}

fn product(x: &Tensor<2>, weights: &Tensor<3>, counts: &[usize]) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as GroupedMatmulOps>::grouped_product(
        x.clone().into_dispatch(),
        weights.clone().into_dispatch(),
        counts.to_vec(),
    ))
}

fn input_gradient(gradient: &Tensor<2>, weights: &Tensor<3>, counts: &[usize]) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as GroupedMatmulOps>::grouped_input_gradient(
        gradient.clone().into_dispatch(),
        weights.clone().into_dispatch(),
        counts.to_vec(),
    ))
}

fn weight_gradient(x: &Tensor<2>, gradient: &Tensor<2>, counts: &[usize]) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as GroupedMatmulOps>::grouped_weight_gradient(
        x.clone().into_dispatch(),
        gradient.clone().into_dispatch(),
        counts.to_vec(),
    ))
}

/// A grouped product and the dense one at one size.
struct Row {
    operation: &'static str,
    sizes: [(&'static str, usize); 4],
    /// Floating-point operations of either.
    flops: f64,
    /// Bytes that the grouped one has to read and write.
    bytes: f64,
    grouped: Timing,
    dense: Timing,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.dense.median / self.grouped.median
    }

    fn gflops(&self, timing: &Timing) -> f64 {
        self.flops / timing.median / 1e9
    }

    fn gb_per_second(&self) -> f64 {
        self.bytes / self.grouped.median / 1e9
    }

    fn cells(&self) -> Vec<String> {
        let Self { grouped, dense, .. } = self;
        vec![
            self.operation.to_owned(),
            self.sizes.map(|(name, size)| format!("{name} {size}")).join(", "),
            format!("{:.3}", grouped.median * 1e3),
            format!("{:.3}", dense.median * 1e3),
            format!("{:.1}", self.gflops(grouped)),
            format!("{:.1}", self.gflops(dense)),
            format!("{:.1}", self.gb_per_second()),
            format!("{:.2}", self.ratio()),
        ]
    }

    fn json(&self) -> Value {
        let Self { grouped, dense, .. } = self;
        let sizes: serde_json::Map<String, Value> =
            self.sizes.iter().map(|(name, size)| ((*name).to_owned(), json!(size))).collect();
        json!({
            "operation": self.operation,
            "sizes": sizes,
            "flops": self.flops,
            "bytes": self.bytes,
            "runs": grouped.runs,
            "seconds_median": grouped.median,
            "dense_seconds_median": dense.median,
            "gflops": self.gflops(grouped),
            "dense_gflops": self.gflops(dense),
            "gb_per_second": self.gb_per_second(),
            "ratio": self.ratio(),
        })
    }
}

fn print(
    stopwatch: &Stopwatch,
    rows: &[Row],
    arguments: &GroupedArguments,
) -> Result<(), TrainError> {
    const HEADER: [&str; 8] =
        ["operation", "size", "median ms", "dense ms", "GFLOP/s", "dense GFLOP/s", "GB/s", "ratio"];
    let (device, dtype) = (&stopwatch.device_name, name_of(stopwatch.dtype));
    let rows_are = if arguments.uneven { "uneven" } else { "even" };
    output::line(&format!("{device}, {dtype}; {rows_are} rows, beside one dense product"))?;
    let mut lines = vec![HEADER.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(Row::cells));
    output::write(&report::table(&lines))?;
    report::write_json(
        arguments.measure.json.as_deref(),
        &json!({
            "subject": "grouped",
            "device": device,
            "dtype": dtype,
            "uneven": arguments.uneven,
            "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_an_expert() {
        assert_eq!(counts(10, 4, false), [3, 2, 3, 2]);
        assert_eq!(counts(64, 4, true), [4, 12, 20, 28]);
        assert_eq!(counts(2, 4, true), [0, 1, 0, 1]);
        for experts in [1, 3, 128] {
            for uneven in [false, true] {
                assert_eq!(counts(4096, experts, uneven).iter().sum::<usize>(), 4096);
            }
        }
    }
}
