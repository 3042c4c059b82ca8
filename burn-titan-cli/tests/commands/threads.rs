//! Training on the CPU, whatever the number of threads.

use crate::sandbox::Sandbox;

/// Kernels split work into tasks of fixed size, so that sums do not depend on the number of threads.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let trained = ["1", "3"].map(|threads| {
        let sandbox = Sandbox::new();
        let mut command = sandbox.command(&["train", "run.yaml"]);
        let output = command.env("RAYON_NUM_THREADS", threads).output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{threads} threads: {stderr}");
        ["model", "optimizer"]
            .map(|name| sandbox.read(&format!("out/checkpoint/step-00000004/{name}.safetensors")))
    });
    assert!(trained[0] == trained[1], "1 and 3 threads gave different weights");
}
