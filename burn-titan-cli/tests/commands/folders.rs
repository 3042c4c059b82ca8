//! Output folders that are used again: nothing of an earlier run is lost, and two runs never mix.

use std::fs::{self, File};

use crate::sandbox::Sandbox;

const RECORDS: [&str; 3] = ["out/metrics.jsonl", "out/config.yaml", "out/loss.svg"];

fn records(sandbox: &Sandbox) -> [Vec<u8>; 3] {
    RECORDS.map(|name| sandbox.read(name))
}

/// The exit code and the message of a command that must fail.
fn refusal(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, String) {
    let ended = sandbox.run(arguments);
    let message = ended.stderr.lines().find(|line| line.starts_with("error"));
    (ended.code, message.unwrap_or_default().to_owned())
}

#[test]
fn a_run_that_does_not_continue_another_does_not_overwrite_it() {
    let sandbox = Sandbox::trained();
    let before = records(&sandbox);
    for word in ["checkpoint.enable=false", "checkpoint.folder=elsewhere"] {
        assert_eq!(
            refusal(&sandbox, &["train", "run.yaml", word]),
            (
                Some(2),
                "error: out: the folder holds an earlier run, whose newest checkpoint is \
                 out/checkpoint/step-00000004, but this run neither continues it nor may overwrite \
                 its metrics: choose another run.name or run.output_dir, or delete the folder"
                    .to_owned()
            ),
            "{word}"
        );
        assert!(records(&sandbox) == before, "{word}");
    }
}

#[test]
fn the_metrics_of_a_run_without_checkpoints_are_kept() {
    let sandbox = Sandbox::new();
    let arguments = ["train", "run.yaml", "checkpoint.enable=false"];
    sandbox.succeed(&arguments);
    let [metrics, config, _] = records(&sandbox);
    let again = sandbox.run(&[&arguments[..], &["training.steps=3"]].concat());
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let message = "the metrics of an earlier run are now in out/metrics.jsonl.1\n";
    assert!(again.stderr.contains(message), "{}", again.stderr);
    assert!(sandbox.read("out/metrics.jsonl.1") == metrics);
    assert!(sandbox.read("out/config.yaml.1") == config);
    let text = String::from_utf8(sandbox.read("out/metrics.jsonl")).expect("JSON is UTF-8");
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn a_run_that_is_complete_is_left_alone() {
    let sandbox = Sandbox::trained();
    let before = records(&sandbox);
    assert_eq!(
        sandbox.succeed(&["train", "run.yaml"]),
        "the run is complete: 4 of 4 steps were done before; raise training.steps to go on, or see \
         out\n"
    );
    assert!(records(&sandbox) == before);
    assert_eq!(
        refusal(&sandbox, &["train", "run.yaml", "training.steps=3"]),
        (
            Some(2),
            "error: training.steps: out/checkpoint/step-00000004 has 4 steps done, but the config \
             says 3: raise training.steps to 4 or more, or start a run of another run.name"
                .to_owned()
        )
    );
    assert!(records(&sandbox) == before);
}

#[test]
fn a_changed_schedule_is_told() {
    let after_step_2 = |words: &[&str]| {
        let sandbox = Sandbox::trained();
        let last = sandbox.path("out/checkpoint/step-00000004");
        fs::remove_dir_all(last).expect("the checkpoint can be deleted");
        let ended = sandbox.run(&[&["train", "run.yaml"], words].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let told = ended.stderr.lines().find(|line| line.contains("new schedule"));
        told.unwrap_or_default().to_owned()
    };
    assert_eq!(after_step_2(&[]), "");
    assert_eq!(
        after_step_2(&["training.steps=5"]),
        "training.steps was 4 when the checkpoint was written and is 5 now: the learning rate follows \
         the new schedule from here on"
    );
    assert_eq!(
        after_step_2(&["lr_scheduler.warmup_steps=1"]),
        "the section lr_scheduler has changed since the checkpoint was written: the learning rate \
         follows the new schedule from here on"
    );
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let sandbox = Sandbox::trained();
    let hold = |name: &str| {
        let file = File::create(sandbox.path(name)).expect("the lock can be made");
        file.try_lock().expect("the lock is free");
        file
    };
    let run = hold("out/.run.lock");
    assert_eq!(
        refusal(&sandbox, &["train", "run.yaml", "training.steps=6"]),
        (
            Some(1),
            "error: out: another run is writing to this folder: wait for its end, or give this run \
             another run.name or run.output_dir"
                .to_owned()
        )
    );
    drop(run);
    let save = hold("out/checkpoint/.lock");
    assert_eq!(
        refusal(&sandbox, &["train", "run.yaml", "training.steps=6"]),
        (
            Some(1),
            "error: out/checkpoint: another process is saving to this folder: give each run its own \
             `run.output_dir`"
                .to_owned()
        )
    );
    drop(save);
    sandbox.succeed(&["train", "run.yaml", "training.steps=6"]);
}

#[test]
fn a_runs_own_folder_of_checkpoints_is_found() {
    let sandbox = Sandbox::new();
    for folder in [".", "saved"] {
        let words =
            [format!("checkpoint.folder={folder}"), format!("run.output_dir=out-{}", folder.len())];
        sandbox.succeed(&["train", "run.yaml", &words[0], &words[1]]);
        let output = format!("out-{}", folder.len());
        let tokens = ["--prompt", "To be", "--max-tokens", "2"];
        sandbox.succeed(&[&["generate", "--checkpoint", &output], &tokens[..]].concat());
    }
}
