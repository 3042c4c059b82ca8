//! The ranks of a pipeline together hold what is planned of each.

use std::sync::PoisonError;

use super::{TURN, compared, measured_and_planned};

const PP2: &str = "parallelism.pipeline_parallel_degree=2";
const MICRO_BATCHES: &str = "training.global_batch_size=32";

fn schedule(name: &str) -> String {
    format!("parallelism.pipeline_parallel_schedule={name}")
}

#[test]
fn ranks_of_a_pipeline_hold_what_is_planned() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // What is made once for the process is counted for none.
    measured_and_planned(2, &[PP2, MICRO_BATCHES]);
    let mut results = Vec::new();
    for name in ["gpipe", "1f1b", "zb1p", "interleaved_1f1b", "zbv"] {
        for mode in ["none", "full"] {
            let words = [&schedule(name), &format!("activation_checkpoint.mode={mode}")];
            let words = [PP2, MICRO_BATCHES, words[0].as_str(), words[1].as_str()];
            results.push(compared(&format!("PP 2, {name}, checkpointing {mode}"), 2, &words));
        }
    }
    let wrong: Vec<String> =
        results.into_iter().filter(|(_, far)| *far).map(|(line, _)| line).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn eight_ranks_and_64_micro_batches() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let words = |name: &str| {
        let words = [
            "parallelism.pipeline_parallel_degree=8",
            "training.global_batch_size=256",
            "training.seq_len=64",
            "training.steps=1",
            "model.overrides.n_layers=16",
        ];
        [&words.map(String::from)[..], &[schedule(name)]].concat()
    };
    let mut results = Vec::new();
    for name in ["1f1b", "interleaved_1f1b", "zb1p", "zbv"] {
        let words = words(name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        results.push(compared(&format!("PP 8, {name}, 64 micro-batches"), 8, &words));
    }
    let wrong: Vec<String> =
        results.into_iter().filter(|(_, far)| *far).map(|(line, _)| line).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
