//! Whether a run has the numbers of one rank.

use burn_titan_core::checkpoint;
use burn_titan_tests::runs::Run;

/// Saves what [`biases`] reads.
pub const SAVED: [&str; 2] = ["checkpoint.enable=true", "checkpoint.interval=20"];

/// What has moved by the load of every expert in all of 20 steps: equal only where every load was.
pub fn biases(run: &Run) -> Vec<(String, Vec<f32>)> {
    let saved = checkpoint::open(&run.path("out/checkpoint/step-00000020")).expect("a checkpoint");
    let names = saved.model_tensors().map(|entry| entry.name.to_string());
    let values = |name: &str| saved.tensor(name).and_then(|tensor| Ok(tensor.to_f32()?));
    let biases = names.filter(|name| name.ends_with("router.bias"));
    biases.map(|name| (name.clone(), values(&name).expect("its values"))).collect()
}

/// Loss, gradient norm, what experts add to the loss, and tokens, of every step.
pub fn curve(run: &Run) -> Vec<[f64; 4]> {
    let row = |m: burn_titan_core::metrics::StepMetrics| {
        let tokens = (m.tokens_per_second * m.step_seconds).round();
        [m.loss, m.grad_norm, m.auxiliary_loss.unwrap_or(0.0), tokens]
    };
    run.metrics().into_iter().map(row).collect()
}

/// Twenty steps with the losses and norms of others, and as many tokens.
pub fn assert_close(name: &str, reference: &[[f64; 4]], found: &[[f64; 4]]) {
    assert_eq!((reference.len(), found.len()), (20, 20), "{name}");
    let relative = |i: usize| {
        let pairs = reference.iter().zip(found);
        pairs.map(|(a, b)| (a[i] - b[i]).abs() / a[i].abs().max(1e-9)).fold(0.0, f64::max)
    };
    let (loss, norm, added) = (relative(0), relative(1), relative(2));
    println!("{name}: loss {loss:.1e}, norm {norm:.1e}");
    let close = loss < 1e-6 && norm < 1e-6 && added < 1e-6;
    assert!(close, "{name}: loss {loss:.1e}, norm {norm:.1e}, added {added:.1e}");
    let tokens = |rows: &[[f64; 4]]| rows.iter().map(|row| row[3]).collect::<Vec<_>>();
    assert_eq!(tokens(reference), tokens(found), "{name}: tokens");
}
