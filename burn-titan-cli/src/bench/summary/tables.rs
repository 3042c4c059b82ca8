//! The page of tables.

use serde_json::{Value, json};

use super::goals::goals;
use super::{Measured, Step};

/// All tables that there is something for.
pub(super) fn page(measured: &Measured) -> String {
    let tables = [
        about(measured),
        goals(measured),
        ceilings(measured),
        steps(measured),
        kernels(measured),
        losses(measured),
        training(measured),
        profiles(measured),
        operations(measured),
        starts(measured),
        peer_notes(measured),
    ];
    let mut page = String::from("# What a device was measured to do\n");
    for table in tables.into_iter().filter(|table| !table.is_empty()) {
        page.push('\n');
        page += &table;
    }
    page
}

/// A heading and a table; nothing without rows.
pub(super) fn table(heading: &str, columns: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let header: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(columns.len()));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!("## {heading}\n\n{}{rule}{rows}", line(&header))
}

fn about(measured: &Measured) -> String {
    let line = |(name, value): &(String, String)| format!("- {name}: {value}\n");
    measured.about.iter().map(line).collect()
}

fn steps(measured: &Measured) -> String {
    let row = |step: &Step| {
        vec![step.title.clone(), step.name.clone(), format!("{:.1}", step.seconds), step.verdict()]
    };
    let rows: Vec<Vec<String>> = measured.steps.iter().map(row).collect();
    table("Steps", &["step", "name", "s", ""], &rows)
}

fn kernels(measured: &Measured) -> String {
    let Some(kernels) = measured.parts.get("kernels") else { return String::new() };
    let checks = kernels["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let failed: Vec<Vec<String>> = checks
        .iter()
        .filter(|check| check["passed"] != true)
        .map(|check| {
            let text = |key: &str| check[key].as_str().unwrap_or("-").to_owned();
            let message: String = text("message").chars().take(200).collect();
            let number = |key: &str| check[key].as_f64().map_or("-".into(), |n| format!("{n:.1e}"));
            let size = format!("{}, {}", text("case"), text("dtype"));
            vec![text("kernel"), size, number("error"), number("bound"), message]
        })
        .collect();
    let sum = format!(
        "{} checks against float64, of which {} failed.\n",
        kernels["checked"], kernels["failed"]
    );
    let columns = ["kernel", "size", "error", "bound", "message"];
    let table = table("Kernels that failed", &columns, &failed);
    if table.is_empty() { format!("## Kernels\n\n{sum}") } else { format!("{table}\n{sum}") }
}

fn losses(measured: &Measured) -> String {
    let rows = subjects(measured, "compare").map(|(name, part)| {
        let number = |key: &str| part[key].as_f64().map_or("-".into(), |n| format!("{n:.1e}"));
        let steps = part["steps"].to_string();
        let verdict = if part["passed"] == true { "ok" } else { "**no**" };
        vec![name.to_owned(), steps, number("difference"), number("within"), verdict.into()]
    });
    let columns = ["run", "steps", "largest difference of losses", "may be", ""];
    table("Losses beside flex, or beside one rank", &columns, &rows.collect::<Vec<_>>())
}

fn training(measured: &Measured) -> String {
    let rows = subjects(measured, "step").map(|(name, part)| {
        let speed = part["tokens_per_second"].as_f64();
        let memory = part["memory_gib"].as_f64();
        let ours = part["ceilings"]["gflops"].as_f64();
        let best = ours.into_iter().chain(their_products(measured)).max_by(f64::total_cmp);
        let share = ratio(part["gflops"].as_f64(), best);
        let peer = |mode: &str, key: &str| peer_of_step(measured, name, mode, key);
        let [compiled, eager] = ["compile", "eager"].map(|mode| peer(mode, "tokens_per_second"));
        let their_memory = peer("compile", "memory_gib").or_else(|| peer("eager", "memory_gib"));
        vec![
            name.trim_start_matches("step-").to_owned(),
            part["parameters"].to_string(),
            number(speed, 0),
            number(share.map(|share| 100.0 * share), 0),
            number(memory, 2),
            number(compiled, 0),
            number(ratio(speed, compiled), 2),
            number(eager, 0),
            number(ratio(speed, eager), 2),
            number(ratio(memory, their_memory), 2),
        ]
    });
    let columns = [
        "model and tokens of a sequence",
        "parameters",
        "tokens/s",
        "% of the fastest matrix product",
        "GiB",
        "PyTorch compiled",
        "ratio",
        "PyTorch eager",
        "ratio",
        "memory ratio",
    ];
    table("Training steps (ratios: ours over PyTorch's)", &columns, &rows.collect::<Vec<_>>())
}

/// What the time of training steps is made of, in percent.
fn profiles(measured: &Measured) -> String {
    let parts = |part: &Value| part["profile"].as_array().cloned().unwrap_or_default();
    let rows = subjects(measured, "step").flat_map(|(name, part)| {
        let row = |of: &Value| {
            vec![
                name.trim_start_matches("step-").to_owned(),
                of["kind"].as_str().unwrap_or("-").to_owned(),
                number(of["launches"].as_f64(), 0),
                number(of["seconds"].as_f64().map(|seconds| 1e3 * seconds), 2),
                number(of["percent"].as_f64(), 1),
            ]
        };
        let parts = parts(part);
        let gaps = |of: &&Value| of["kind"] != "gaps";
        let sum = |key: &str| parts.iter().filter(gaps).filter_map(|of| of[key].as_f64()).sum::<f64>();
        let all = json!({
            "kind": "all kernels", "launches": sum("launches"), "seconds": sum("seconds"), "percent": sum("percent"),
        });
        let all = (!parts.is_empty()).then_some(all);
        parts.iter().chain(&all).map(row).collect::<Vec<_>>()
    });
    let columns = ["model and tokens of a sequence", "kernels", "launches", "ms", "% of the step"];
    table("What a step's time is made of", &columns, &rows.collect::<Vec<_>>())
}

fn operations(measured: &Measured) -> String {
    let mut lines = Vec::new();
    for (name, part) in &measured.parts {
        for row in part["rows"].as_array().into_iter().flatten() {
            lines.push(operation(measured, name, part, row));
        }
    }
    let columns = [
        "part",
        "operation",
        "size",
        "format",
        "ms",
        "TFLOP/s",
        "GB/s",
        "% of ceiling",
        "PyTorch ms",
        "ratio",
    ];
    table("Operations (ratio: our speed over PyTorch's)", &columns, &lines)
}

fn operation(measured: &Measured, name: &str, part: &Value, row: &Value) -> Vec<String> {
    let seconds = row["seconds_median"].as_f64();
    let theirs = their_seconds(measured, name, row);
    let milliseconds = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e3);
    let sizes = row["sizes"].as_object().into_iter().flatten();
    let sizes: Vec<String> = sizes.map(|(name, size)| format!("{name} {size}")).collect();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    vec![
        name.to_owned(),
        text(&row["operation"]),
        sizes.join(", "),
        text(&part["dtype"]),
        number(milliseconds(seconds), 3),
        number(row["gflops"].as_f64().map(|rate| rate / 1e3), 2),
        number(row["gb_per_second"].as_f64(), 1),
        number(row["percent_of_ceiling"].as_f64(), 0),
        number(milliseconds(theirs), 3),
        number(ratio(theirs, seconds), 2),
    ]
}

/// What PyTorch took for the same operation of the same size.
fn their_seconds(measured: &Measured, name: &str, row: &Value) -> Option<f64> {
    let same_sizes = |entry: &Value| {
        let sizes = entry["sizes"].as_object()?;
        Some(sizes.iter().all(|(size, value)| row["sizes"][size] == *value))
    };
    let mut entries = peers(measured)
        .filter(|entry| entry["part"] == name && entry["operation"] == row["operation"]);
    entries.find(|entry| same_sizes(entry) == Some(true))?["seconds_median"].as_f64()
}

/// Each operation that PyTorch ran too: its part, its name, and our speed over theirs.
pub(super) fn operations_beside(measured: &Measured) -> impl Iterator<Item = (&str, &str, f64)> {
    measured.parts.iter().flat_map(move |(name, part)| {
        let rows = part["rows"].as_array().into_iter().flatten();
        rows.filter_map(move |row| {
            let theirs = their_seconds(measured, name, row);
            let ratio = ratio(theirs, row["seconds_median"].as_f64())?;
            Some((name.as_str(), row["operation"].as_str()?, ratio))
        })
    })
}

/// What PyTorch reached in a training step.
pub(super) fn peer_of_step(measured: &Measured, name: &str, mode: &str, key: &str) -> Option<f64> {
    let entry = peers(measured).find(|it| it["part"] == name && it["mode"] == mode)?;
    entry[key].as_f64()
}

/// The rates of PyTorch's matrix products, in GFLOP/s.
fn their_products(measured: &Measured) -> impl Iterator<Item = f64> {
    let products = peers(measured).filter(|entry| entry["part"] == "matmul");
    products.filter_map(|entry| entry["gflops"].as_f64())
}

/// The most that the device was seen to do.
fn ceilings(measured: &Measured) -> String {
    let ours = |key: &str| {
        let rates = measured.parts.values().filter_map(|part| part["ceilings"][key].as_f64());
        rates.max_by(f64::total_cmp)
    };
    let copies = peers(measured).filter(|entry| entry["part"] == "copy");
    let copy = copies.filter_map(|entry| entry["gb_per_second"].as_f64()).max_by(f64::total_cmp);
    let product = their_products(measured).max_by(f64::total_cmp);
    let tera = |rate: Option<f64>| number(rate.map(|rate| rate / 1e3), 2);
    let rows = [
        ["matrix product, TFLOP/s".into(), tera(ours("gflops")), tera(product)],
        ["memory, GB/s".into(), number(ours("gb_per_second"), 0), number(copy, 0)],
    ];
    match rows.iter().any(|row| row[1] != "-" || row[2] != "-") {
        true => table("Ceilings", &["", "Burn", "PyTorch"], &rows.map(Vec::from)),
        false => String::new(),
    }
}

/// Runs of one step, which are told apart by what was there already.
fn starts(measured: &Measured) -> String {
    let starts = measured.steps.iter().filter(|step| step.name.starts_with("start-"));
    let rows = starts.filter(|step| step.code == 0);
    let rows: Vec<Vec<String>> =
        rows.map(|step| vec![step.title.clone(), format!("{:.1}", step.seconds)]).collect();
    table("From the start of the program to the end of its first step", &["", "s"], &rows)
}

/// What the peer could not measure.
fn peer_notes(measured: &Measured) -> String {
    let notes: Vec<Vec<String>> = peers(measured)
        .filter_map(|entry| Some(vec![entry["message"].as_str()?.replace('|', "/")]))
        .collect();
    table("What PyTorch did not measure", &[""], &notes)
}

/// Parts of one subject, with their names.
pub(super) fn subjects<'a>(
    measured: &'a Measured,
    subject: &'a str,
) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let parts = measured.parts.iter().map(|(name, part)| (name.as_str(), part));
    parts.filter(move |(_, part)| part["subject"] == subject)
}

/// What PyTorch took.
fn peers(measured: &Measured) -> impl Iterator<Item = &Value> {
    let peer = measured.parts.get("peer").and_then(|peer| peer["entries"].as_array());
    peer.into_iter().flatten()
}

pub(super) fn ratio(over: Option<f64>, under: Option<f64>) -> Option<f64> {
    Some(over? / under?)
}

/// A number with so many digits behind the point, or a dash.
fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Step;
    use super::*;

    fn measured() -> Measured {
        let step = json!({
            "subject": "step", "parameters": 10, "tokens_per_second": 300.0, "gflops": 50.0,
            "ceilings": { "gflops": 200.0 }, "memory_gib": 2.0,
            "profile": [{ "kind": "loss", "launches": 3.0, "seconds": 0.75, "percent": 75.0 }, { "kind": "gaps", "launches": 0.0, "seconds": 0.25, "percent": 25.0 }],
        });
        let attention = json!({
            "subject": "attention", "dtype": "bf16",
            "rows": [{
                "operation": "forward", "sizes": { "seq": 64 }, "seconds_median": 0.002,
                "gflops": 1500.0, "gb_per_second": 1.0, "percent_of_ceiling": 40.0,
            }],
        });
        let peer = json!({ "entries": [
            { "part": "step-125m-2048", "mode": "compile", "tokens_per_second": 400.0, "memory_gib": 4.0 },
            { "part": "attention-64-causal", "operation": "forward", "sizes": { "seq": 64 },
              "seconds_median": 0.001 },
            { "part": "matmul", "operation": "matmul", "sizes": { "m": 8 }, "gflops": 400.0 },
            { "part": "copy", "gb_per_second": 2000.0 },
            { "part": "peer", "mode": "failed", "message": "1b | no memory" },
        ]});
        let kernels = json!({ "checked": 3, "failed": 1, "checks": [
            { "kernel": "rope", "case": "[1]", "dtype": "f32", "passed": false, "error": 1.0,
              "bound": 1e-6, "message": null },
            { "kernel": "swiglu", "passed": true },
        ]});
        let compare = json!({ "subject": "compare", "steps": 20, "difference": 1e-5, "within": 1e-4,
            "passed": true });
        let parts = [
            ("step-125m-2048", step),
            ("attention-64-causal", attention),
            ("peer", peer),
            ("kernels", kernels),
            ("debug-f32", compare),
        ];
        Measured {
            about: vec![("device".into(), "a GPU".into())],
            steps: vec![
                Step::of("start-cold\t9.5\t0\tnothing was there").unwrap(),
                Step::of("matmul\t60\t124\tproducts").unwrap(),
            ],
            parts: parts.into_iter().map(|(name, part)| (name.to_owned(), part)).collect(),
        }
    }

    #[test]
    fn ratios_are_ours_to_theirs_in_speed() {
        let page = page(&measured());
        for line in [
            "- device: a GPU",
            "| products | matmul | 60.0 | **time over** |",
            "| rope | [1], f32 | 1.0e0 | 1.0e-6 | - |",
            "3 checks against float64, of which 1 failed.",
            "| debug-f32 | 20 | 1.0e-5 | 1.0e-4 | ok |",
            "| 125m-2048 | 10 | 300 | 12 | 2.00 | 400 | 0.75 | - | - | 0.50 |",
            "| attention-64-causal | forward | seq 64 | bf16 | 2.000 | 1.50 | 1.0 | 40 | 1.000 | 0.50 |",
            "| 125m-2048 | gaps | 0 | 250.00 | 25.0 |",
            "| 125m-2048 | all kernels | 3 | 750.00 | 75.0 |",
            "| matrix product, TFLOP/s | 0.20 | 0.40 |",
            "| memory, GB/s | - | 2000 |",
            "| nothing was there | 9.5 |",
            "| 1b / no memory |",
        ] {
            assert!(page.lines().any(|it| it == line), "no line {line} in\n{page}");
        }
    }

    #[test]
    fn nothing_measured_is_an_empty_page() {
        assert_eq!(page(&Measured::default()), "# What a device was measured to do\n");
        assert_eq!(Step::of("cut off\t1"), None);
    }
}
