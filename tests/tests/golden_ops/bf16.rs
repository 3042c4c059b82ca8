//! The kernels on bf16 inputs, each element within a bound that follows from bf16's rounding.
//!
//! A number rounded to bf16 (8 significant bits) is off by at most `U = 2^-8` of itself. The inputs
//! here are bf16 numbers, exactly, so the f64 reference and the kernel begin with the same. The
//! kernels compute in f32 and round what they return to bf16; so `|got - want| <= U |want|`, and a
//! little for f32, unless a step before the last is rounded too: the tests say where, and carry its
//! error on to the result.

use burn::tensor::{DType, Tensor};
use burn_titan_kernels::{
    AttentionMask, Scores, attention, linear_cross_entropy, rms_norm, rope, sum_of_squares, swiglu,
};
use burn_titan_tests::numbers::{
    forward_backward, int_tensor, noise, tensor, transposed, values, wide,
};
use burn_titan_tests::reference::{
    self, AttentionSizes, cross_entropy, dot, matmul, numeric_gradients, softmax,
};

const U: f64 = 1.0 / 256.0;
/// Rounding errors of f32 sums, as a share of the tensor's largest value.
const F32: f64 = 2e-6;

/// Seeded bf16 numbers in `[-size, size]`.
fn bf16_noise(count: usize, seed: u64, size: f32) -> Vec<f32> {
    let noise: Vec<f32> = noise(count, seed).iter().map(|x| x * size).collect();
    values(tensor(&noise, [count]).cast(DType::BF16))
}

/// The error of a number that is off by at most `error` of `value` before it is rounded.
fn rounded(value: f64, error: f64) -> f64 {
    error + U * (value.abs() + error)
}

/// Each element of `got` is within `bound` and the last rounding of `want`.
fn within(name: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let mut used = 0.0_f64;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        let bound = rounded(*want, bound(i)) + F32 * largest;
        assert!(error <= bound, "{name}[{i}]: {got} instead of {want}, bound {bound:e}");
        used = used.max(error / bound);
    }
    println!("{name}: at most {used:.2} of the bound");
}

/// For kernels that round only what they return: output and every gradient.
fn check<const N: usize, const D: usize>(
    name: &str,
    inputs: [&[f32]; N],
    kernel: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    reference: impl Fn([&[f64]; N]) -> Vec<f64>,
) {
    let exact = inputs.map(wide);
    let exact = exact.each_ref().map(Vec::as_slice);
    let want = reference(exact);
    let gradient = bf16_noise(want.len(), 78, 1.0);
    let (output, gradients) = forward_backward(inputs, &gradient, DType::BF16, kernel);
    within(name, &output, &want, |_| 0.0);
    let gradient = wide(&gradient);
    let numeric = numeric_gradients(exact, |inputs| dot(&reference(inputs), &gradient));
    for (input, (got, want)) in gradients.iter().zip(&numeric).enumerate() {
        within(&format!("{name}, gradient of input {input}"), got, want, |_| 0.0);
    }
}

#[test]
fn rms_norm_rounds_once() {
    check(
        "rms_norm",
        [&bf16_noise(70 * 24, 1, 2.0), &bf16_noise(24, 2, 1.0)],
        |[x, w]| rms_norm(x.reshape([70, 24]), w, 1e-5),
        |[x, w]| reference::rms_norm(x, w, f64::from(1e-5_f32)),
    );
}

#[test]
fn swiglu_rounds_once() {
    check(
        "swiglu",
        [&bf16_noise(301, 3, 5.0), &bf16_noise(301, 4, 2.0)],
        |[a, b]| swiglu(a, b),
        |[a, b]| reference::swiglu(a, b),
    );
}

#[test]
fn rope_rounds_once() {
    let [batch, seq, heads, half] = [2, 7, 3, 4];
    let angles = noise(batch * seq * half, 5);
    let cos: Vec<f32> = angles.iter().map(|a| (a * 3.0).cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| (a * 3.0).sin()).collect();
    check(
        "rope",
        [&bf16_noise(batch * seq * heads * 2 * half, 6, 1.0)],
        |[x]| {
            let tables = [batch, seq, half];
            let x = x.reshape([batch, seq, heads, 2 * half]);
            rope(x, tensor(&cos, tables), tensor(&sin, tables))
        },
        |[x]| reference::rope(x, &wide(&cos), &wide(&sin), [heads, half]),
    );
}

#[test]
fn sum_of_squares_stays_in_f32() {
    let x = bf16_noise(5000, 7, 3.0);
    let got = values(sum_of_squares(tensor(&x, [5000]).cast(DType::BF16)))[0];
    let want = dot(&wide(&x), &wide(&x));
    assert!((f64::from(got) / want - 1.0).abs() < 1e-6, "{got} instead of {want}");
}

/// The backward uses the rounded output: `D_i = sum_d dO_id O_id` is off by at most
/// `e_i = U sum_d |dO_id O_id|`, so `dS_ij = P_ij (dP_ij - D_i)` by `P_ij e_i`, and with it
/// `dQ_i = scale sum_j dS_ij K_j` and `dK_j = scale sum_i dS_ij Q_i`. `dV` does not use it.
#[test]
fn attention_rounds_its_output_once() {
    let sizes = AttentionSizes { batch: 2, heads: 4, kv_heads: 2, seq: 19, head_dim: 8 };
    let AttentionSizes { batch, heads, kv_heads, seq, head_dim } = sizes;
    let starts = [0, 7, 12];
    let start = |i: i64| *starts.iter().rev().find(|start| **start <= i).unwrap();
    let first_key: Vec<i64> = (0..seq as i64).map(start).collect::<Vec<_>>().repeat(batch);
    let [q, k, v] = sizes.elements();
    let inputs = [bf16_noise(q, 8, 3.0), bf16_noise(k, 9, 3.0), bf16_noise(v, 10, 1.0)];
    let inputs = inputs.each_ref().map(Vec::as_slice);
    let exact = inputs.map(wide);
    let exact = exact.each_ref().map(Vec::as_slice);
    let (want, p) = reference::attention(exact, &first_key, sizes);
    let gradient = bf16_noise(want.len(), 79, 1.0);
    let kv = [batch, kv_heads, seq, head_dim];
    let (output, gradients) = forward_backward(inputs, &gradient, DType::BF16, |[q, k, v]| {
        let (q, k, v) = (q.reshape([batch, heads, seq, head_dim]), k.reshape(kv), v.reshape(kv));
        let mask = AttentionMask::documents(int_tensor(&first_key, [batch, seq]));
        attention(q, k, v, &mask, Scores::scaled(head_dim)).output
    });
    within("attention", &output, &want, |_| 0.0);

    let gradient = wide(&gradient);
    let numeric = numeric_gradients(exact, |inputs| {
        dot(&reference::attention(inputs, &first_key, sizes).0, &gradient)
    });
    let scale = (head_dim as f64).powf(-0.5);
    let row = |x: usize| x * head_dim..(x + 1) * head_dim;
    let mut bounds = [vec![0.0; q], vec![0.0; k]];
    sizes.for_pairs(&first_key, |q, k, pair| {
        let products = gradient[row(q)].iter().zip(&want[row(q)]).map(|(g, o)| (g * o).abs());
        let error = scale * p[pair] * U * products.sum::<f64>();
        for d in 0..head_dim {
            bounds[0][q * head_dim + d] += error * exact[1][k * head_dim + d].abs();
            bounds[1][k * head_dim + d] += error * exact[0][q * head_dim + d].abs();
        }
    });
    within("attention, query", &gradients[0], &numeric[0], |i| bounds[0][i]);
    within("attention, key", &gradients[1], &numeric[1], |i| bounds[1][i]);
    within("attention, value", &gradients[2], &numeric[2], |_| 0.0);
}

/// Logits are rounded: `z'_j = z_j + d_j`, `|d_j| <= U |z_j|`, at most `m` in a row.
/// - The loss of a row, `log sum exp(z) - z_t`, is off by at most `sum_j p'_j |d_j| + |d_t| <= 2 m`.
/// - A probability is multiplied by `exp(d_j) / sum_k p_k exp(d_k)`, so it is off by at most
///   `p_j (exp(2 m) - 1)`; the logits' gradient, also in bf16, by that and a rounding: `e_j`.
/// - `dhidden = dlogits W^T` and `dweight = hidden^T dlogits` are off by `e |W|^T` and `|hidden|^T e`,
///   and are rounded, also after the multiplication by the loss's own gradient.
#[test]
fn cross_entropy_rounds_its_logits() {
    let [tokens, dim, vocab] = [13, 6, 17];
    let target = |i: usize| if i % 5 == 3 { -1 } else { (i * 7919 % vocab) as i64 };
    let targets: Vec<i64> = (0..tokens).map(target).collect();
    let inputs = [bf16_noise(tokens * dim, 11, 2.0), bf16_noise(dim * vocab, 12, 1.0)];
    let share = 0.1875;
    let (loss, [d_hidden, d_weight]) = forward_backward(
        inputs.each_ref().map(Vec::as_slice),
        &[share],
        DType::BF16,
        |[hidden, weight]| {
            let (hidden, weight) = (hidden.reshape([tokens, dim]), weight.reshape([dim, vocab]));
            linear_cross_entropy(hidden, weight, int_tensor(&targets, [tokens]))
        },
    );
    let [hidden, weight] = inputs.each_ref().map(|x| wide(x));
    let logits = matmul(&hidden, &weight, [tokens, dim, vocab]);
    let mut d_logits = softmax(&logits, vocab);
    let mut errors = vec![0.0; tokens * vocab];
    let mut loss_error = 0.0;
    for (i, target) in targets.iter().enumerate() {
        let row = i * vocab..(i + 1) * vocab;
        let Ok(target) = usize::try_from(*target) else {
            d_logits[row].fill(0.0);
            continue;
        };
        let m = U * logits[row.clone()].iter().fold(0.0_f64, |m, z| m.max(z.abs()));
        loss_error += 2.0 * m;
        for (j, d) in row.enumerate() {
            let moved = d_logits[d] * ((2.0 * m).exp() - 1.0);
            d_logits[d] -= if j == target { 1.0 } else { 0.0 };
            errors[d] = rounded(d_logits[d], moved);
        }
    }
    let want = cross_entropy(&logits, &targets);
    let error = (f64::from(loss[0]) - want).abs();
    println!("cross_entropy: {:.2} of the bound", error / loss_error);
    assert!(error <= loss_error, "loss {} instead of {want}, bound {loss_error:e}", loss[0]);

    let share = f64::from(share);
    let size = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<f64>>();
    let scaled = |x: Vec<f64>| x.iter().map(|x| x * share).collect::<Vec<f64>>();
    let columns = |x: &[f64]| transposed(x, [dim, vocab]);
    let rows = |x: &[f64]| transposed(x, [tokens, dim]);
    let sizes = [tokens, vocab, dim];
    let want = scaled(matmul(&d_logits, &columns(&weight), sizes));
    let bound = scaled(matmul(&errors, &columns(&size(&weight)), sizes));
    within("cross_entropy, hidden", &d_hidden, &want, |i| rounded(want[i], bound[i]));
    let sizes = [dim, tokens, vocab];
    let want = scaled(matmul(&rows(&hidden), &d_logits, sizes));
    let bound = scaled(matmul(&rows(&size(&hidden)), &errors, sizes));
    within("cross_entropy, weight", &d_weight, &want, |i| rounded(want[i], bound[i]));
}
