//! Hand-written backward passes against central differences of an f64 forward, on every device. (Windows, caps
//! and the embedding are compared with autodiff of f64 references beside the kernels.)

use burn::tensor::{DType, Tensor};
use burn_titan_kernels::{
    AttentionMask, Scores, attention, linear_cross_entropy, rms_norm, rope, swiglu,
};
use burn_titan_tests::numbers::{
    devices, forward_backward, forward_backward_on, int_tensor, noise, relative, tensor, wide,
    worst,
};
use burn_titan_tests::reference::{self, AttentionSizes, dot, numeric_gradients};

/// Differences are exact to 1e-10, so all of this is the f32 kernel's; the issue asks for 1e-4.
const TOLERANCE: f64 = 1e-5;

/// Compares the kernel's output and gradients at f32 inputs with those of `reference`.
fn check<const N: usize, const D: usize>(
    name: &str,
    inputs: [&[f32]; N],
    kernel: impl Fn([Tensor<1>; N]) -> Tensor<D>,
    reference: impl Fn([&[f64]; N]) -> Vec<f64>,
) {
    let exact = inputs.map(wide);
    let want = reference(exact.each_ref().map(Vec::as_slice));
    let gradient = noise(want.len(), 77);
    let wide_gradient = wide(&gradient);
    let numeric = numeric_gradients(exact.each_ref().map(Vec::as_slice), |inputs| {
        dot(&reference(inputs), &wide_gradient)
    });
    for device in devices() {
        let (output, gradients) =
            forward_backward_on(&device, inputs, &gradient, DType::F32, &kernel);
        let by_output = relative(&output, &want);
        println!("{name} on {device:?}: output {by_output:.2e}");
        assert!(by_output < TOLERANCE, "{name} on {device:?}: output {by_output:e}");
        for (input, (got, want)) in gradients.iter().zip(&numeric).enumerate() {
            // Some gradients vanish: a softmax over one key, a norm over one element.
            let scale = want.iter().fold(0.1_f64, |largest, x| largest.max(x.abs()));
            let difference = worst(got, want) / scale;
            println!("{name} on {device:?}: gradient of input {input} {difference:.2e}");
            assert!(difference < TOLERANCE, "{name} on {device:?}, input {input}: {difference:e}");
        }
    }
}

/// The first key of each token: the start of its document. Documents repeat until the row is full.
fn first_keys(batch: usize, seq: usize, lengths: &[usize]) -> Vec<i64> {
    let mut starts = Vec::new();
    for length in lengths.iter().cycle() {
        if starts.len() >= seq {
            break;
        }
        starts.extend(std::iter::repeat_n(starts.len() as i64, *length));
    }
    starts.truncate(seq);
    starts.repeat(batch)
}

fn check_attention(name: &str, sizes: AttentionSizes, documents: &[usize]) {
    let AttentionSizes { batch, heads, kv_heads, seq, head_dim } = sizes;
    let first_key = first_keys(batch, seq, documents);
    let [q, k, v] = sizes.elements();
    let larger = |x: Vec<f32>| x.iter().map(|x| x * 3.0).collect::<Vec<f32>>();
    let inputs = [larger(noise(q, 1)), larger(noise(k, 2)), noise(v, 3)];
    check(
        name,
        inputs.each_ref().map(Vec::as_slice),
        |[q, k, v]| {
            let kv = [batch, kv_heads, seq, head_dim];
            let (q, k, v) =
                (q.reshape([batch, heads, seq, head_dim]), k.reshape(kv), v.reshape(kv));
            let first_key = int_tensor(&first_key, [batch, seq]).to_device(&q.device().inner());
            let mask = AttentionMask::documents(first_key);
            attention(q, k, v, &mask, Scores::scaled(head_dim)).output
        },
        |inputs| reference::attention(inputs, &first_key, sizes).0,
    );
}

#[test]
fn attention_in_one_tile() {
    let sizes = AttentionSizes { batch: 2, heads: 4, kv_heads: 2, seq: 9, head_dim: 6 };
    check_attention("attention, whole rows", sizes, &[9]);
    check_attention("attention, documents", sizes, &[3, 1, 4]);
    check_attention("attention, documents of one token", sizes, &[1]);
    check_attention("attention, one token", AttentionSizes { seq: 1, ..sizes }, &[1]);
    let own = AttentionSizes { heads: 3, kv_heads: 3, head_dim: 5, ..sizes };
    check_attention("attention, own heads", own, &[5, 2]);
}

/// The kernel works in tiles of 64 queries and 128 keys; documents begin and end inside of them.
#[test]
fn attention_over_tiles() {
    let sizes = AttentionSizes { batch: 1, heads: 2, kv_heads: 1, seq: 131, head_dim: 2 };
    check_attention("attention, tiles", sizes, &[131]);
    check_attention("attention, documents over tiles", sizes, &[70, 59]);
}

#[test]
fn rms_norm_over_rows() {
    for (rows, dim) in [(1, 1), (3, 17), (67, 4)] {
        check(
            &format!("rms_norm {rows} x {dim}"),
            [&noise(rows * dim, 4), &noise(dim, 5)],
            |[x, w]| rms_norm(x.reshape([rows, dim]), w, 1e-5),
            |[x, w]| reference::rms_norm(x, w, f64::from(1e-5_f32)),
        );
    }
}

#[test]
fn rms_norm_of_small_rows_is_held_by_eps() {
    let small: Vec<f32> = noise(15, 6).iter().map(|x| x * 1e-2).collect();
    check(
        "rms_norm of small rows",
        [&small, &noise(5, 7)],
        |[x, w]| rms_norm(x.reshape([3, 5]), w, 1e-3),
        |[x, w]| reference::rms_norm(x, w, f64::from(1e-3_f32)),
    );
}

#[test]
fn swiglu_by_element() {
    let gate: Vec<f32> = noise(37, 8).iter().map(|x| x * 6.0).collect();
    check(
        "swiglu",
        [&gate, &noise(37, 9)],
        |[a, b]| swiglu(a, b),
        |[a, b]| reference::swiglu(a, b),
    );
}

#[test]
fn rope_over_positions() {
    let [batch, seq, heads, half] = [2, 5, 3, 3];
    let angles = noise(batch * seq * half, 10);
    // The tables are f32, so the reference takes them as they are.
    let cos: Vec<f32> = angles.iter().map(|a| (a * 3.0).cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| (a * 3.0).sin()).collect();
    check(
        "rope",
        [&noise(batch * seq * heads * 2 * half, 11)],
        |[x]| {
            let tables = [batch, seq, half];
            let x = x.reshape([batch, seq, heads, 2 * half]);
            let table = |values: &[f32]| tensor(values, tables).to_device(&x.device().inner());
            rope(x.clone(), table(&cos), table(&sin))
        },
        |[x]| reference::rope(x, &wide(&cos), &wide(&sin), [heads, half]),
    );
}

/// 520 tokens are two chunks of the kernel.
#[test]
fn cross_entropy_over_chunks() {
    for [tokens, dim, vocab] in [[1, 1, 2], [7, 5, 11], [520, 2, 3]] {
        let target = |i: usize| if i % 4 == 2 { -1 } else { (i * 7919 % vocab) as i64 };
        let targets: Vec<i64> = (0..tokens).map(target).collect();
        let hidden: Vec<f32> = noise(tokens * dim, 12).iter().map(|x| x * 2.0).collect();
        check(
            &format!("cross_entropy {tokens} x {dim} x {vocab}"),
            [&hidden, &noise(dim * vocab, 13)],
            |[hidden, weight]| {
                let (hidden, weight) =
                    (hidden.reshape([tokens, dim]), weight.reshape([dim, vocab]));
                let targets = int_tensor(&targets, [tokens]).to_device(&hidden.device().inner());
                linear_cross_entropy(hidden, weight, targets)
            },
            |[hidden, weight]| {
                let logits = reference::matmul(hidden, weight, [tokens, dim, vocab]);
                vec![reference::cross_entropy(&logits, &targets)]
            },
        );
    }
}

#[test]
fn cross_entropy_of_no_target_is_nothing() {
    let (loss, [hidden, weight]) =
        forward_backward([&noise(6, 1), &noise(8, 2)], &[1.0], DType::F32, |[hidden, weight]| {
            let targets = int_tensor(&[-1, -1, -1], [3]);
            linear_cross_entropy(hidden.reshape([3, 2]), weight.reshape([2, 4]), targets)
        });
    assert_eq!(loss, [0.0]);
    assert_eq!([worst(&hidden, &[0.0; 6]), worst(&weight, &[0.0; 8])], [0.0; 2]);
}
