//! Gradient accumulation gives the losses of the whole batch at once.

use std::fmt::Write;

use burn_titan_tests::runs::{Run, SMALL};

/// Trains with 8 sequences a step in micro-batches of `local`.
fn curve(run: &Run, local: usize, words: &[&str]) -> Vec<(f64, f64)> {
    let local = format!("training.local_batch_size={local}");
    let common = [local.as_str(), "training.global_batch_size=8", "training.steps=5"];
    run.train(&[&common[..], words].concat());
    run.metrics().iter().map(|m| (m.loss, m.grad_norm)).collect()
}

fn check_all_splits(make: impl Fn() -> Run, words: &[&str]) {
    let whole = curve(&make(), 8, words);
    assert_eq!(whole.len(), 5);
    for local in [4, 2, 1] {
        let split = curve(&make(), local, words);
        for (step, (a, b)) in whole.iter().zip(&split).enumerate() {
            let relative = |a: f64, b: f64| ((a - b) / a).abs();
            let (loss, norm) = (relative(a.0, b.0), relative(a.1, b.1));
            println!("local {local}, step {}: loss {loss:.1e}, norm {norm:.1e}", step + 1);
            assert!(loss < 1e-6, "local {local}, step {}: {a:?} {b:?}", step + 1);
            assert!(norm < 1e-5, "local {local}, step {}: {a:?} {b:?}", step + 1);
        }
    }
}

#[test]
fn packed_batches() {
    check_all_splits(|| Run::new(SMALL), &[]);
}

/// Documents of 1 to 120 words are padded, so that micro-batches differ widely in valid tokens. A mean
/// of their means would weigh them wrongly; the check is that it would show.
#[test]
fn documents_of_very_different_lengths() {
    let make = || {
        let run = Run::new(SMALL);
        run.write("lengths.jsonl", uneven_documents().as_bytes());
        run
    };
    let words =
        ["data.train=[{path: HERE/lengths.jsonl}]", "data.pack=false", "data.shuffle=false"];
    check_all_splits(make, &words);

    // One micro-batch of all 8 documents against the mean of the first step's losses one by one.
    let whole = curve(&make(), 8, &words)[0].0;
    let alone = make();
    let lr = "optimizer.lr=1e-30";
    let one = ["training.local_batch_size=1", "training.steps=8", lr];
    alone.train(&[&one[..], &words].concat());
    let mean = alone.losses().iter().sum::<f64>() / 8.0;
    println!("global mean {whole:.6}, mean of means {mean:.6}");
    assert!(((whole - mean) / whole).abs() > 1e-4, "{whole} {mean}");
}

fn uneven_documents() -> String {
    let vocabulary =
        ["sun", "moon", "river", "the", "king", "spake", "of", "night", "and", "sword"];
    let mut lines = String::new();
    for document in 0..40_usize {
        let length = if document % 3 == 0 { 1 + document % 4 } else { 20 + 7 * (document % 15) };
        let words: Vec<&str> =
            (0..length).map(|i| vocabulary[(i * i + 3 * document) % vocabulary.len()]).collect();
        let _ = writeln!(lines, "{{\"text\": \"{}\"}}", words.join(" "));
    }
    lines
}
