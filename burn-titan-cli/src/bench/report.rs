//! What is printed, and what is written as JSON.

use std::fs;
use std::path::Path;

use burn_titan_core::trainer::TrainError;
use serde_json::{Map, Value, json};

use super::ceilings::Ceilings;
use super::measure::{Stopwatch, Timing, name_of};
use crate::output;

/// One operation at one size.
pub struct Row {
    /// What was run.
    pub operation: &'static str,
    /// Names and numbers of its size.
    pub sizes: Vec<(&'static str, usize)>,
    /// How long it took.
    pub timing: Timing,
    /// Floating-point operations, where it is they that count.
    pub flops: Option<f64>,
    /// Bytes that have to be read and written.
    pub bytes: f64,
}

impl Row {
    /// Rates are those of the median.
    fn json(&self, ceilings: &Ceilings) -> Value {
        let sizes: Map<String, Value> =
            self.sizes.iter().map(|(name, size)| ((*name).to_owned(), json!(size))).collect();
        json!({
            "operation": self.operation,
            "sizes": sizes,
            "seconds_median": self.timing.median,
            "seconds_best": self.timing.best,
            "runs": self.timing.runs,
            "flops": self.flops,
            "bytes": self.bytes,
            "gflops": self.gflops(),
            "gb_per_second": self.gb_per_second(),
            "percent_of_ceiling": self.percent(ceilings),
        })
    }

    fn gflops(&self) -> Option<f64> {
        self.flops.map(|flops| flops / self.timing.median / 1e9)
    }

    fn gb_per_second(&self) -> f64 {
        self.bytes / self.timing.median / 1e9
    }

    /// Of the rate that the ceiling allows: that of arithmetic or that of memory, whichever binds.
    fn percent(&self, ceilings: &Ceilings) -> f64 {
        let floor = ceilings.floor(self.flops.unwrap_or(0.0), self.bytes);
        100.0 * floor / self.timing.median
    }

    fn cells(&self, ceilings: &Ceilings) -> Vec<String> {
        let sizes: Vec<String> =
            self.sizes.iter().map(|(name, size)| format!("{name} {size}")).collect();
        vec![
            self.operation.to_owned(),
            sizes.join(", "),
            format!("{:.3}", self.timing.median * 1e3),
            format!("{:.3}", self.timing.best * 1e3),
            self.gflops().map_or("-".into(), |gflops| format!("{gflops:.1}")),
            format!("{:.1}", self.gb_per_second()),
            format!("{:.0}", self.percent(ceilings)),
        ]
    }
}

/// Prints the rows as a table, and writes them to `json` if it is given.
///
/// # Errors
/// If standard output or the file cannot be written.
pub fn print(
    subject: &str,
    stopwatch: &Stopwatch,
    ceilings: &Ceilings,
    rows: &[Row],
    json: Option<&Path>,
) -> Result<(), TrainError> {
    const HEADER: [&str; 7] =
        ["operation", "size", "median ms", "best ms", "GFLOP/s", "GB/s", "% of ceiling"];
    let (device, dtype) = (&stopwatch.device_name, name_of(stopwatch.dtype));
    output::line(&ceilings_line(device, dtype, ceilings))?;
    let mut lines = vec![HEADER.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| row.cells(ceilings)));
    output::write(&table(&lines))?;
    let rows: Vec<Value> = rows.iter().map(|row| row.json(ceilings)).collect();
    write_json(
        json,
        &json!({
            "subject": subject,
            "device": device,
            "dtype": dtype,
            "ceilings": ceilings,
            "rows": rows,
        }),
    )
}

/// What the percentages refer to.
pub fn ceilings_line(device: &str, dtype: &str, ceilings: &Ceilings) -> String {
    let Ceilings { gflops, gb_per_second } = ceilings;
    let product =
        gflops.map_or(String::new(), |rate| format!("matrix product {rate:.1} GFLOP/s, "));
    format!("{device}, {dtype}; ceilings measured now: {product}memory {gb_per_second:.1} GB/s")
}

/// Writes the numbers to a file, if one is given.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: Option<&Path>, numbers: &Value) -> Result<(), TrainError> {
    let Some(path) = path else { return Ok(()) };
    fs::write(path, format!("{numbers:#}\n")).map_err(|error| TrainError::File {
        path: path.display().to_string(),
        cause: format!("cannot write the numbers: {error}"),
    })
}

/// Lines of cells, in columns: words to the left, numbers to the right.
pub fn table(lines: &[Vec<String>]) -> String {
    /// The columns of words.
    const WORDS: usize = 2;
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < WORDS { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        text += &cells.collect::<Vec<_>>().join("  ");
        text.push('\n');
    }
    text
}
