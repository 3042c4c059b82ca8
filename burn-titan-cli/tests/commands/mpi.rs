//! Training by ranks that mpirun starts, over MPI.

use std::process::Command;

use burn_titan_core::metrics::read_metrics;

use crate::processes::EXPERTS;
use crate::sandbox::Sandbox;

fn curve(sandbox: &Sandbox) -> Vec<(f64, f64)> {
    let rows = read_metrics(&sandbox.path("out/metrics.jsonl")).unwrap_or_default();
    rows.iter().map(|m| (m.loss, m.grad_norm)).collect()
}

#[test]
fn mpirun_trains_as_threads_do() {
    as_threads_do(&[]);
}

/// Exchanges in the middle of forwards and backwards, also from one rank to the next.
#[test]
fn mpirun_splits_models_as_threads_do() {
    as_threads_do(&[
        "parallelism.tensor_parallel_degree=2",
        "parallelism.context_parallel_degree=2",
    ]);
}

/// Stages send to each other whenever they have something.
#[test]
fn mpirun_runs_pipelines_as_threads_do() {
    as_threads_do(&["parallelism.pipeline_parallel_degree=2", "training.global_batch_size=8"]);
}

/// As many rows to each rank as a router chose.
#[test]
fn mpirun_deals_experts_as_threads_do() {
    as_threads_do(&[
        EXPERTS,
        "data={train: [{path: tokens.bin}]}",
        "training.seq_len=37",
        "validation.enable=false",
        "parallelism.tensor_parallel_degree=2",
        "parallelism.expert_parallel_degree=4",
    ]);
}

/// MPI adds in an order of its own.
fn as_threads_do(split: &[&str]) {
    let words = ["train", "run.yaml", "training.steps=10", "training.local_batch_size=1"];
    let words = [&words, split].concat();
    let threads = Sandbox::new();
    threads.succeed(&[&words[..], &["--simulate", "4"]].concat());
    let reference = curve(&threads);
    for backend in ["auto", "mpi", "tcp"] {
        let sandbox = Sandbox::new();
        let mut command = Command::new("mpirun");
        // Where the tests run as root that is a container; and there are more ranks than cores.
        command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "4"]);
        command.arg(env!("CARGO_BIN_EXE_burn-titan")).args(&words);
        command.arg(format!("comm.backend={backend}")).current_dir(sandbox.path(""));
        // For `tcp`; MPI trusts whom it starts.
        command.env("BURN_TITAN_TOKEN", "of this test");
        let output = command.output().expect("mpirun, of the package openmpi-bin");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{backend}: {stderr}");
        let found = curve(&sandbox);
        assert_eq!(found.len(), 10);
        for (a, b) in reference.iter().zip(&found) {
            let close = |a: f64, b: f64| ((a - b) / a).abs() < 1e-5;
            assert!(close(a.0, b.0) && close(a.1, b.1), "{backend}: {reference:?} {found:?}");
        }
        assert!(sandbox.path("out/checkpoint/step-00000010/index.json").is_file());
    }
}
