//! Weights in Meta's layout, reordered for Hugging Face's, give through our kernels the attention that
//! Meta's RoPE gives.
//!
//! Meta turns neighbours `(2i, 2i + 1)` of a head together, Hugging Face and we the halves
//! `(i, i + head_dim / 2)`.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::Device;
use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::model::{Context, HeadOutput};
use burn_titan_models::llama3::config::RopeScaling;
use burn_titan_models::llama3::hf::{hf_to_meta_rows, meta_to_hf_rows};
use burn_titan_models::rotary::Rotary;
use burn_titan_models::{Attention, AttentionConfig, FusedAttention};
use burn_titan_tests::numbers::{noise, relative, tensor, transposed, values, wide};
use burn_titan_tests::reference::{self, AttentionSizes, matmul};
use burn_titan_tests::tiny;

const DIM: usize = 20;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 10;
const ROWS: usize = 2;
/// Documents of each row, in tokens.
const DOCUMENTS: [usize; 3] = [40, 1, 36];
const SEQ: usize = 77;

/// Weights `[out, in]`, query and key rows in Meta's order.
struct Weights {
    q: HostTensor,
    k: HostTensor,
    v: HostTensor,
    o: HostTensor,
}

fn weights() -> Weights {
    let weight = |name: &str, out: usize, inputs: usize, seed| {
        HostTensor::from_f32(name, &[out, inputs], &noise(out * inputs, seed)).unwrap()
    };
    Weights {
        q: weight("wq", HEADS * HEAD_DIM, DIM, 1),
        k: weight("wk", KV_HEADS * HEAD_DIM, DIM, 2),
        v: weight("wv", KV_HEADS * HEAD_DIM, DIM, 3),
        o: weight("wo", DIM, HEADS * HEAD_DIM, 4),
    }
}

fn rotary() -> Rotary {
    // So short an original context that some frequencies are scaled, some interpolated, some kept.
    let scaling = RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    Rotary { head_dim: HEAD_DIM, theta: 100.0, scaling: Some(scaling) }
}

fn context() -> Context {
    let tokens = vec![0; ROWS * SEQ];
    tiny::context(&tiny::documents(&DOCUMENTS, &tokens, &tokens), HeadOutput::Loss)
}

/// Our attention with weights in Hugging Face's layout.
fn ours(weights: &Weights, x: &[f32]) -> Vec<f32> {
    let config = AttentionConfig {
        dim: DIM,
        n_heads: HEADS,
        n_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        rotary: rotary(),
    };
    let mut attention = FusedAttention::new(&config, &Device::flex());
    let fill = |linear: &mut Linear, weight: &HostTensor| {
        let (shape, values) = (weight.shape(), weight.to_f32().unwrap());
        let ours = transposed(&values, [shape[0], shape[1]]);
        linear.weight = Param::from_tensor(tensor(&ours, [shape[1], shape[0]]));
    };
    fill(&mut attention.wq, &weights.q);
    fill(&mut attention.wk, &weights.k);
    fill(&mut attention.wv, &weights.v);
    fill(&mut attention.wo, &weights.o);
    values(attention.forward(tensor(x, [ROWS, SEQ, DIM]), &context()))
}

/// Meta's attention in f64.
fn meta(weights: &Weights, x: &[f32]) -> Vec<f64> {
    let project = |x: &[f64], weight: &HostTensor| {
        let [out, inputs] = [weight.shape()[0], weight.shape()[1]];
        let columns = transposed(&wide(&weight.to_f32().unwrap()), [out, inputs]);
        matmul(x, &columns, [ROWS * SEQ, inputs, out])
    };
    let x = wide(x);
    let q = by_head(&turned(project(&x, &weights.q), HEADS), [SEQ, HEADS]);
    let k = by_head(&turned(project(&x, &weights.k), KV_HEADS), [SEQ, KV_HEADS]);
    let v = by_head(&project(&x, &weights.v), [SEQ, KV_HEADS]);
    let starts = DOCUMENTS.iter().scan(0, |next, length| {
        let start = *next;
        *next += *length as i64;
        Some(std::iter::repeat_n(start, *length))
    });
    let first_key: Vec<i64> = starts.flatten().collect::<Vec<_>>().repeat(ROWS);
    let sizes = AttentionSizes {
        batch: ROWS,
        heads: HEADS,
        kv_heads: KV_HEADS,
        seq: SEQ,
        head_dim: HEAD_DIM,
    };
    let (output, _) = reference::attention([&q, &k, &v], &first_key, sizes);
    project(&by_head(&output, [HEADS, SEQ]), &weights.o)
}

/// Neighbours of `[rows, seq, heads, HEAD_DIM]` turned by their position in their document.
fn turned(mut x: Vec<f64>, heads: usize) -> Vec<f64> {
    let frequencies = rotary().frequencies();
    let positions: Vec<usize> = DOCUMENTS.iter().flat_map(|length| 0..*length).collect();
    for (pair, ab) in x.chunks_mut(2).enumerate() {
        let (head, i) = (pair / (HEAD_DIM / 2), pair % (HEAD_DIM / 2));
        let position = positions[head / heads % SEQ];
        let (sin, cos) = (position as f64 * frequencies[i]).sin_cos();
        (ab[0], ab[1]) = (ab[0] * cos - ab[1] * sin, ab[0] * sin + ab[1] * cos);
    }
    x
}

/// `[rows, a, b, HEAD_DIM]` to `[rows, b, a, HEAD_DIM]`.
fn by_head(x: &[f64], [a, b]: [usize; 2]) -> Vec<f64> {
    let head = |row: usize, i: usize, j: usize| {
        let start = ((row * a + i) * b + j) * HEAD_DIM;
        x[start..start + HEAD_DIM].iter().copied()
    };
    let order =
        (0..ROWS).flat_map(|row| (0..b).flat_map(move |j| (0..a).map(move |i| (row, i, j))));
    order.flat_map(|(row, i, j)| head(row, i, j)).collect()
}

#[test]
fn both_layouts_give_the_same_attention() {
    assert_eq!(DOCUMENTS.iter().sum::<usize>(), SEQ);
    let weights = weights();
    let x = noise(ROWS * SEQ * DIM, 5);
    let want = meta(&weights, &x);
    let reordered = Weights {
        q: meta_to_hf_rows(&weights.q, HEADS, HEAD_DIM).unwrap(),
        k: meta_to_hf_rows(&weights.k, KV_HEADS, HEAD_DIM).unwrap(),
        v: weights.v.clone(),
        o: weights.o.clone(),
    };
    let difference = relative(&ours(&reordered, &x), &want);
    println!("reordered: {difference:.2e}");
    assert!(difference < 3e-6, "{difference:e}");
    // Meta's rows as they are give something else.
    let wrong = relative(&ours(&weights, &x), &want);
    println!("as they are: {wrong:.2e}");
    assert!(wrong > 0.05, "{wrong:e}");

    assert_eq!(hf_to_meta_rows(&reordered.q, HEADS, HEAD_DIM).unwrap(), weights.q);
    assert_eq!(hf_to_meta_rows(&reordered.k, KV_HEADS, HEAD_DIM).unwrap(), weights.k);
}
