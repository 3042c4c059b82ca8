//! Whether a run has the numbers of one rank.

use burn_titan_tests::runs::Run;

/// Loss, gradient norm, and tokens, of every step.
pub fn curve(run: &Run) -> Vec<[f64; 3]> {
    let row = |m: burn_titan_core::metrics::StepMetrics| {
        [m.loss, m.grad_norm, (m.tokens_per_second * m.step_seconds).round()]
    };
    run.metrics().into_iter().map(row).collect()
}

/// Twenty steps with the losses and norms of others, and as many tokens.
pub fn assert_close(name: &str, reference: &[[f64; 3]], found: &[[f64; 3]]) {
    assert_eq!((reference.len(), found.len()), (20, 20), "{name}");
    let relative = |i: usize| {
        let pairs = reference.iter().zip(found);
        pairs.map(|(a, b)| ((a[i] - b[i]) / a[i]).abs()).fold(0.0, f64::max)
    };
    let (loss, norm) = (relative(0), relative(1));
    println!("{name}: loss {loss:.1e}, norm {norm:.1e}");
    assert!(loss < 1e-6 && norm < 1e-6, "{name}: loss {loss:.1e}, norm {norm:.1e}");
    let tokens = |rows: &[[f64; 3]]| rows.iter().map(|row| row[2]).collect::<Vec<_>>();
    assert_eq!(tokens(reference), tokens(found), "{name}: tokens");
}
