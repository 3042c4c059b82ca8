//! Outputs and gradients against the golden ones, which are float64 stored as f32.

use burn::tensor::{DType, Tensor};
use burn_titan_core::model::{Context, HeadOutput};
use burn_titan_kernels::{
    AttentionMask, Scores, attention, linear_cross_entropy, rms_norm, swiglu,
};
use burn_titan_models::llama3::config::RopeScaling;
use burn_titan_models::rotary::Rotary;
use burn_titan_tests::golden::{Tensors, json, numbers};
use burn_titan_tests::numbers::{
    devices, forward_backward_on, int_tensor, relative, transposed, wide, worst,
};
use burn_titan_tests::reference::matmul;
use burn_titan_tests::tiny;

const OUTPUT: f64 = 2e-6;
const GRADIENT: f64 = 1e-5;

fn close(name: &str, output: f64, gradients: &[f64]) {
    println!("{name}: output {output:.2e}");
    assert!(output < OUTPUT, "{name}: {output:e}");
    for (input, gradient) in gradients.iter().enumerate() {
        println!("{name}: gradient of input {input} {gradient:.2e}");
        assert!(*gradient < GRADIENT, "{name}: gradient of input {input}: {gradient:e}");
    }
}

#[test]
fn attention_of_grouped_and_of_own_heads() {
    for device in devices() {
        for name in ["attn_causal_gqa_b1_h4_kv2_t128_hd64", "attn_causal_mha_b2_h2_kv2_t33_hd16"] {
            let golden = Tensors::open(&format!("ops/{name}.safetensors"));
            let [batch, _, seq, head_dim] = golden.shape("q");
            let shapes = ["q", "k", "v"].map(|name| golden.shape::<4>(name));
            let [q, k, v, gradient] = ["q", "k", "v", "dout"].map(|name| golden.floats(name));
            let (output, gradients) =
                forward_backward_on(&device, [&q, &k, &v], &gradient, DType::F32, |inputs| {
                    let [q, k, v] = inputs;
                    let mask = AttentionMask::causal(batch, seq, &device);
                    let (k, v) = (k.reshape(shapes[1]), v.reshape(shapes[2]));
                    attention(q.reshape(shapes[0]), k, v, &mask, Scores::scaled(head_dim)).output
                });
            let differences: Vec<f64> = ["dq", "dk", "dv"]
                .iter()
                .zip(&gradients)
                .map(|(name, got)| relative(got, &golden.floats(name)))
                .collect();
            close(name, worst(&output, &golden.floats("out")), &differences);
        }
    }
}

#[test]
fn rms_norm_and_its_gradients() {
    for device in devices() {
        let golden = Tensors::open("ops/misc.safetensors");
        let read = |name: &str| golden.floats(&format!("rmsnorm.{name}"));
        let shape = golden.shape::<2>("rmsnorm.x");
        let (y, [dx, dw]) = forward_backward_on(
            &device,
            [&read("x"), &read("w")],
            &read("dy"),
            DType::F32,
            |[x, w]| rms_norm(x.reshape(shape), w, 1e-5),
        );
        let gradients = [relative(&dx, &read("dx")), relative(&dw, &read("dw"))];
        close("rms_norm", worst(&y, &read("y")), &gradients);
    }
}

#[test]
fn swiglu_and_its_gradients() {
    for device in devices() {
        let golden = Tensors::open("ops/misc.safetensors");
        let read = |name: &str| golden.floats(&format!("swiglu.{name}"));
        let shape = golden.shape::<2>("swiglu.gate");
        let inputs = [read("gate"), read("up")];
        let (y, [da, db]) = forward_backward_on(
            &device,
            [&inputs[0], &inputs[1]],
            &read("dy"),
            DType::F32,
            |[a, b]| swiglu(a.reshape(shape), b.reshape(shape)),
        );
        let gradients = [relative(&da, &read("dgate")), relative(&db, &read("dup"))];
        close("swiglu", worst(&y, &read("y")), &gradients);
    }
}

/// Golden heads are `[batch, heads, seq, head_dim]`, a model's `[batch, seq, heads, head_dim]`.
#[test]
fn half_split_rope_and_its_gradient() {
    for device in devices() {
        let golden = Tensors::open("ops/misc.safetensors");
        let read = |name: &str| golden.floats(&format!("rope_half_theta5e5.{name}"));
        let shape = golden.shape::<4>("rope_half_theta5e5.x");
        let [_, _, seq, head_dim] = shape;
        let rotary = Rotary { head_dim, theta: 5e5, scaling: None };
        let tokens = vec![0; seq];
        let context = Context::new(&tiny::batch(seq, &tokens, &tokens), HeadOutput::Loss, &device);
        let (y, [dx]) =
            forward_backward_on(&device, [&read("x")], &read("dy"), DType::F32, |[x]| {
                let x: Tensor<4> = x.reshape(shape);
                rotary.forward(x.swap_dims(1, 2), &context).swap_dims(1, 2)
            });
        close("rope", worst(&y, &read("y")), &[relative(&dx, &read("dx"))]);
    }
}

#[test]
fn rope_frequencies_of_llama_3_1() {
    let golden = json("ops/rope_llama3_scaling.json");
    let number = |key: &str| golden[key].as_f64().unwrap();
    let scaling = RopeScaling {
        factor: number("factor"),
        low_freq_factor: number("low_freq_factor"),
        high_freq_factor: number("high_freq_factor"),
        original_max_position_embeddings: number("original_max_position") as usize,
    };
    for (key, scaling) in [("inv_freq", None), ("inv_freq_scaled", Some(scaling))] {
        let head_dim = number("head_dim") as usize;
        let rotary = Rotary { head_dim, theta: number("theta"), scaling };
        let (got, want) = (rotary.frequencies(), numbers(&golden[key]));
        let ratios: Vec<f64> = got.iter().zip(&want).map(|(a, b)| a / b).collect();
        assert!(worst(&ratios, &vec![1.0; want.len()]) < 1e-14, "{key}: {got:?} {want:?}");
    }
}

/// With the identity as the head's matrix, hidden states are the logits. The golden loss is the mean.
#[test]
fn cross_entropy_with_ignored_targets() {
    for device in devices() {
        let golden = Tensors::open("ops/misc.safetensors");
        let logits = golden.floats("xent.logits");
        let targets: Vec<i64> =
            golden.integers("xent.labels").iter().map(|t| (*t).max(-1)).collect();
        let [tokens, vocab] = golden.shape::<2>("xent.logits");
        let valid = targets.iter().filter(|target| **target >= 0).count();
        assert_eq!([tokens, valid], [12, 10]);
        let mut identity = vec![0.0; vocab * vocab];
        identity.iter_mut().step_by(vocab + 1).for_each(|x| *x = 1.0);
        let share = 1.0 / valid as f32;
        let (loss, [d_hidden, d_weight]) = forward_backward_on(
            &device,
            [&logits, &identity],
            &[share],
            DType::F32,
            |[hidden, weight]| {
                let (hidden, weight) =
                    (hidden.reshape([tokens, vocab]), weight.reshape([vocab, vocab]));
                linear_cross_entropy(
                    hidden,
                    weight,
                    int_tensor(&targets, [tokens]).to_device(&device),
                )
            },
        );
        let d_logits = wide(&golden.floats("xent.dlogits"));
        let columns = transposed(&wide(&logits), [tokens, vocab]);
        let want = matmul(&columns, &d_logits, [vocab, tokens, vocab]);
        let gradients = [relative(&d_hidden, &d_logits), relative(&d_weight, &want)];
        let mean = [f64::from(loss[0]) / valid as f64];
        close("cross_entropy", worst(&mean, &golden.floats("xent.loss")), &gradients);
    }
}
