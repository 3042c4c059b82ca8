//! `bench`: the numbers that it writes agree with one another.

use serde_json::{Value, json};

use crate::sandbox::Sandbox;

/// Runs `bench` with small sizes; gives the table and the numbers.
fn bench(sandbox: &Sandbox, words: &[&str]) -> (String, Value) {
    let table = sandbox.succeed(&[&["bench"], words, &["--json", "numbers.json"]].concat());
    let numbers = serde_json::from_slice(&sandbox.read("numbers.json")).expect("JSON");
    (table, numbers)
}

/// As [`bench`], for operations: quickly.
fn quickly(words: &[&str]) -> (String, Value) {
    bench(&Sandbox::new(), &[words, &["--repeat", "4", "--seconds", "0.05"]].concat())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// The rows, with their rates checked against times, work and ceilings.
fn rows(numbers: &Value) -> &[Value] {
    let ceilings = &numbers["ceilings"];
    // What memory alone binds is held against nothing else.
    let arithmetic = ceilings["gflops"].as_f64().unwrap_or(f64::INFINITY);
    let memory = number(ceilings, "gb_per_second");
    assert!(arithmetic > 0.0 && memory > 0.0, "{ceilings}");
    let rows = numbers["rows"].as_array().expect("rows");
    for row in rows {
        let (median, best) = (number(row, "seconds_median"), number(row, "seconds_best"));
        assert!(best > 0.0 && best <= median, "{row}");
        assert!((3.0..=4.0).contains(&number(row, "runs")), "{row}");
        let bandwidth = number(row, "gb_per_second");
        assert!(close(bandwidth, number(row, "bytes") / median / 1e9), "{row}");
        let mut share = bandwidth / memory;
        if !row["flops"].is_null() {
            let rate = number(row, "gflops");
            assert!(close(rate, number(row, "flops") / median / 1e9), "{row}");
            share = share.max(rate / arithmetic);
        }
        assert!(close(number(row, "percent_of_ceiling"), 100.0 * share), "{row}");
    }
    rows
}

#[test]
fn matmul() {
    let (table, numbers) = quickly(&["matmul", "--shape", "64x32x16,8x8x8", "--dtype", "bf16"]);
    assert_eq!(
        [&numbers["subject"], &numbers["device"], &numbers["dtype"]],
        ["matmul", "flex", "bf16"]
    );
    let rows = rows(&numbers);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["sizes"], json!({"m": 64, "n": 32, "k": 16}));
    assert_eq!(number(&rows[0], "flops"), 65_536.0);
    assert_eq!(number(&rows[0], "bytes"), 2.0 * (64.0 * 16.0 + 16.0 * 32.0 + 64.0 * 32.0));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("flex, bf16; ceilings measured now: matrix product "), "{table}");
    assert!(lines[2].starts_with("matmul     m 64, n 32, k 16  "), "{table}");
    assert_eq!(lines.len(), 4);
}

/// Each of the three products beside a dense one, for each number of experts.
#[test]
fn grouped() {
    let words =
        ["grouped", "--shape", "64x32x16", "--experts", "2,8", "--uneven", "--dtype", "bf16"];
    let (table, numbers) = quickly(&words);
    assert!(table.starts_with("flex, bf16; uneven rows, beside one dense product\n"), "{table}");
    assert_eq!([&numbers["subject"], &numbers["uneven"]], [&json!("grouped"), &json!(true)]);
    let rows = numbers["rows"].as_array().expect("rows");
    assert_eq!([rows.len(), table.lines().count()], [6, 8]);
    for (row, operation) in rows.iter().zip(["forward", "input gradient", "weight gradient"]) {
        assert_eq!(row["operation"], operation);
        assert_eq!(row["sizes"], json!({"m": 64, "n": 32, "k": 16, "experts": 2}));
        assert_eq!(number(row, "flops"), 65_536.0);
        assert_eq!(number(row, "bytes"), 2.0 * (64.0 * (16.0 + 32.0) + 2.0 * 16.0 * 32.0));
        let [ours, dense] = ["gflops", "dense_gflops"].map(|key| number(row, key));
        assert!(close(number(row, "ratio"), ours / dense), "{row}");
    }
}

/// The pairs that are counted are those that are seen: of 7 tokens in documents of 3, 2 x (1 + 2 + 3) + 1.
#[test]
fn attention_counts_what_is_seen() {
    let sizes =
        ["--batch", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "8", "--seq", "7"];
    let flops = |words: &[&str]| {
        let (_, numbers) = quickly(&[&["attention"], &sizes[..], words].concat());
        let rows = rows(&numbers);
        assert_eq!([&rows[0]["operation"], &rows[1]["operation"]], ["forward", "forward+backward"]);
        assert_eq!(number(&rows[0], "bytes"), 4.0 * 2.0 * 7.0 * 8.0 * (4.0 + 2.0 + 2.0 + 4.0));
        assert!(close(number(&rows[1], "flops"), 3.5 * number(&rows[0], "flops")));
        number(&rows[0], "flops")
    };
    let of_a_pair = 4.0 * 2.0 * 4.0 * 8.0;
    assert_eq!(flops(&[]), of_a_pair * 28.0);
    assert_eq!(flops(&["--document-length", "3"]), of_a_pair * 13.0);
    assert_eq!(flops(&["--window", "2"]), of_a_pair * 13.0);
    // As many sequences as have so many tokens.
    for (tokens, batch) in [("15", 2), ("6", 1)] {
        let (_, numbers) =
            quickly(&["attention", "--seq", "7", "--heads", "1", "--tokens", tokens]);
        assert_eq!(rows(&numbers)[0]["sizes"]["batch"], batch);
    }
}

/// One product of logits in the forward, three with the backward.
#[test]
fn loss() {
    let (_, numbers) = quickly(&["loss", "--shape", "9x33x5", "--dtype", "bf16"]);
    let rows = rows(&numbers);
    assert_eq!([&rows[0]["operation"], &rows[1]["operation"]], ["forward", "forward+backward"]);
    assert_eq!(rows[0]["sizes"], json!({"tokens": 9, "vocab": 33, "dim": 5}));
    let product = 2.0 * 9.0 * 33.0 * 5.0;
    assert_eq!([number(&rows[0], "flops"), number(&rows[1], "flops")], [product, 3.0 * product]);
    let bytes = 2.0 * (9.0 * 5.0 + 5.0 * 33.0);
    assert_eq!([number(&rows[0], "bytes"), number(&rows[1], "bytes")], [bytes, 2.0 * bytes]);
}

#[test]
fn optimizer() {
    let (_, numbers) = quickly(&["optimizer", "--elements", "1000"]);
    let rows = rows(&numbers);
    assert_eq!([&rows[0]["operation"], &rows[1]["operation"]], ["AdamW", "sum of squares"]);
    assert_eq!([number(&rows[0], "bytes"), number(&rows[1], "bytes")], [28_000.0, 4000.0]);
    assert!(rows[0]["gflops"].is_null());
}

#[test]
fn step_trains_the_config_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let words = ["step", "run.yaml", "training.local_batch_size=3", "--steps", "4"];
    let (table, numbers) = bench(&sandbox, &words);
    assert_eq!(number(&numbers, "tokens"), 96.0);
    assert_eq!(number(&numbers, "runs"), 3.0);
    let (median, flops) = (number(&numbers, "seconds_median"), number(&numbers, "flops"));
    assert!(close(number(&numbers, "tokens_per_second"), 96.0 / median));
    assert!(close(number(&numbers, "gflops"), flops / median / 1e9));
    assert_eq!(number(&numbers, "optimizer_bytes"), 28.0 * number(&numbers, "parameters"));
    let (ceilings, floor) = (&numbers["ceilings"], &numbers["floor"]);
    let arithmetic = flops / (number(ceilings, "gflops") * 1e9);
    let memory = number(&numbers, "optimizer_bytes") / (number(ceilings, "gb_per_second") * 1e9);
    assert!(close(number(floor, "matmul_seconds"), arithmetic));
    assert!(close(number(floor, "optimizer_seconds"), memory));
    assert!(close(number(floor, "seconds"), arithmetic + memory));
    assert!(close(number(&numbers, "percent_of_ceiling"), 100.0 * (arithmetic + memory) / median));
    assert!(table.contains("tokens a second "), "{table}");
    assert!(!sandbox.path("out").exists(), "the run's own output folder is not touched");
}

/// Threads, and processes that find each other over tcp: both measure, and say what they measured.
#[test]
#[cfg(unix)]
fn collective_between_threads_and_between_processes() {
    for communicator in ["local", "tcp"] {
        let words = ["collective", "--communicator", communicator, "--ranks", "3"];
        let sizes = ["--bytes", "4,40004", "--repeat", "2"];
        let (table, numbers) = bench(&Sandbox::new(), &[&words[..], &sizes[..]].concat());
        assert_eq!(
            [&numbers["subject"], &numbers["communicator"]],
            ["collective", communicator],
            "{table}"
        );
        let rows = numbers["rows"].as_array().expect("rows");
        let operations: Vec<_> = rows.iter().map(|row| &row["operation"]).collect();
        let three = ["all_reduce", "reduce_scatter", "all_gather"];
        assert_eq!(operations, [three, three].concat());
        for (row, bytes) in rows.iter().zip([4.0, 4.0, 4.0, 40_004.0, 40_004.0, 40_004.0]) {
            let (median, best) = (number(row, "seconds_median"), number(row, "seconds_best"));
            assert!(best > 0.0 && best <= median && number(row, "bytes") == bytes, "{row}");
            assert!(close(number(row, "gb_per_second"), bytes / median / 1e9), "{row}");
        }
        let prefix = if communicator == "tcp" { "[rank 0] " } else { "" };
        let first = format!("{prefix}{communicator}, 3 ranks on this host, f32");
        assert!(table.lines().any(|line| line == first), "{table}");
    }
}
