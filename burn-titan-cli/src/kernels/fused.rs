//! The operations of a model, forward and backward.

use burn::backend::Dispatch;
use burn::tensor::{Device, Tensor};
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::attention::{self, Attention, AttentionMask, Scores};
use burn_titan_kernels::cross_entropy::{self, CHUNK_ELEMENTS, CrossEntropyOps, IGNORE};
use burn_titan_kernels::{embedding, linear, rms_norm, rope, swiglu};

use super::Checker;
use super::compare::{Bounds, noise, whole_numbers};

/// Rounded once.
const ONCE: Bounds = Bounds { single: 1e-6, roundings: 1.0, products: false };

pub fn check(checker: &mut Checker) -> Result<(), TrainError> {
    normalisation(checker)?;
    rotation(checker)?;
    activation(checker)?;
    rows(checker)?;
    attentions(checker)?;
    losses(checker)
}

fn normalisation(checker: &mut Checker) -> Result<(), TrainError> {
    for shape in [[2, 3, 16], [1, 67, 37], [1, 3, 700], [3, 50, 2048]] {
        checker.check_differentiable(
            ("rms_norm", &format!("{shape:?}")),
            [("x", noise(shape, 0).reshape([-1])), ("weight", noise([shape[2]], 1) + 1.0)],
            |[x, weight]| rms_norm(x.reshape(shape), weight, 1e-5),
            |[x, weight]| rms_norm::reference::rms_norm(x.reshape(shape), weight, 1e-5),
            ONCE,
        )?;
    }
    Ok(())
}

fn rotation(checker: &mut Checker) -> Result<(), TrainError> {
    /// Cosines and sines for `x`, `[batch, seq, heads, head_dim]`, on its device.
    fn tables(x: &Tensor<4>) -> [Tensor<3>; 2] {
        let [batch, seq, _, head_dim] = x.dims();
        let angles = noise([batch, seq, head_dim / 2], 3) * 3.0;
        [angles.clone().cos(), angles.sin()].map(|table| table.to_device(&x.device().inner()))
    }
    for shape in [[2, 7, 3, 6], [1, 67, 2, 24], [2, 130, 1, 64], [1, 33, 5, 128]] {
        checker.check_differentiable(
            ("rope", &format!("{shape:?}")),
            [("x", noise(shape, 0).reshape([-1]))],
            |[x]| {
                let x = x.reshape(shape);
                let [cos, sin] = tables(&x);
                rope(x, cos, sin)
            },
            |[x]| {
                let x = x.reshape(shape);
                let [cos, sin] = tables(&x).map(Tensor::autodiff);
                rope::reference::rope(x, cos, sin)
            },
            ONCE,
        )?;
    }
    Ok(())
}

fn activation(checker: &mut Checker) -> Result<(), TrainError> {
    for length in [1, 17, 5000, 40_001] {
        checker.check_differentiable(
            ("swiglu", &format!("[{length}]")),
            [("gate", noise([length], 0) * 8.0), ("up", noise([length], 1))],
            |[gate, up]| swiglu(gate, up),
            |[gate, up]| swiglu::reference::swiglu(gate, up),
            ONCE,
        )?;
    }
    Ok(())
}

fn rows(checker: &mut Checker) -> Result<(), TrainError> {
    for ([vocab, dim], [batch, seq]) in
        [([7, 3], [2, 17]), ([97, 37], [1, 131]), ([2000, 300], [3, 50])]
    {
        let ids: Vec<i64> =
            (0..(batch * seq) as i64).map(|t| (t * t + 3 * t) % 101 % vocab as i64).collect();
        checker.check_differentiable(
            ("embedding", &format!("[{vocab}, {dim}] of {batch} x {seq} tokens")),
            [("weight", noise([vocab * dim], 0))],
            |[weight]| {
                let ids = whole_numbers(&ids, [batch, seq], &weight.device());
                embedding(weight.reshape([vocab, dim]), ids)
            },
            |[weight]| {
                let ids = whole_numbers(&ids, [batch, seq], &weight.device());
                embedding::reference::embedding(weight.reshape([vocab, dim]), ids)
            },
            ONCE,
        )?;
    }
    Ok(())
}

/// Burn's matrix product, with the gradients that training takes of it.
pub fn products(checker: &mut Checker) -> Result<(), TrainError> {
    for [m, n, k] in [[1, 7, 16], [67, 331, 24], [131, 200, 700], [512, 384, 256]] {
        checker.check_differentiable(
            ("linear", &format!("[{m}, {k}] by [{k}, {n}]")),
            [("x", noise([m * k], 0)), ("weight", noise([k * n], 1))],
            |[x, weight]| linear(x.reshape([m, k]), weight.reshape([k, n])),
            |[x, weight]| x.reshape([m, k]).matmul(weight.reshape([k, n])),
            // Some devices add products of halves in halves.
            Bounds { single: 5e-6, roundings: 2.0, products: true },
        )?;
    }
    Ok(())
}

/// Sizes of attention, and what its queries see.
struct Case {
    /// Batch, query heads, key heads, tokens, head_dim.
    sizes: [usize; 5],
    /// Tokens of each document, and the most that a token sees.
    document: Option<usize>,
    window: Option<usize>,
    softcap: Option<f32>,
}

impl Case {
    fn causal(sizes: [usize; 5]) -> Self {
        Self { sizes, document: None, window: None, softcap: None }
    }

    fn name(&self) -> String {
        let [batch, heads, kv_heads, seq, head_dim] = self.sizes;
        let mut name = format!("{batch} x {heads}/{kv_heads} heads x {seq} x {head_dim}");
        let options = [
            self.document.map(|length| format!(", documents of {length}")),
            self.window.map(|window| format!(", window {window}")),
            self.softcap.map(|cap| format!(", cap {cap}")),
        ];
        name.extend(options.into_iter().flatten());
        name
    }

    fn mask(&self, device: &Device) -> AttentionMask {
        let [batch, _, _, seq, _] = self.sizes;
        let document = self.document.unwrap_or(seq);
        let row = (0..seq).map(|position| (position - position % document) as i64);
        let first = row.collect::<Vec<_>>().repeat(batch);
        let mask = AttentionMask::documents(whole_numbers(&first, [batch, seq], device));
        match self.window {
            Some(window) => mask.window(window),
            None => mask,
        }
    }

    fn run(
        &self,
        attention: fn(Tensor<4>, Tensor<4>, Tensor<4>, &AttentionMask, Scores) -> Attention,
        [query, key, value]: [Tensor<1>; 3],
    ) -> Tensor<4> {
        let [batch, heads, kv_heads, seq, head_dim] = self.sizes;
        let mask = self.mask(&query.device().inner());
        let keys = [batch, kv_heads, seq, head_dim];
        let query = query.reshape([batch, heads, seq, head_dim]);
        // Large enough for the softmax to be uneven and for a cap to bend.
        let scores = Scores { scale: 3.0 * (head_dim as f32).powf(-0.5), softcap: self.softcap };
        attention(query, key.reshape(keys), value.reshape(keys), &mask, scores).output
    }
}

fn attentions(checker: &mut Checker) -> Result<(), TrainError> {
    let base = || Case::causal([2, 4, 2, 150, 64]);
    let cases = [
        Case::causal([1, 1, 1, 1, 16]),
        Case::causal([2, 4, 2, 67, 16]),
        Case::causal([1, 6, 1, 131, 24]),
        Case::causal([1, 2, 2, 257, 64]),
        Case::causal([1, 4, 2, 129, 128]),
        Case::causal([1, 2, 1, 70, 256]),
        Case { document: Some(1), ..base() },
        Case { document: Some(41), ..base() },
        Case { window: Some(33), ..base() },
        Case { document: Some(60), window: Some(33), softcap: Some(5.0), ..base() },
    ];
    for case in &cases {
        let [batch, heads, kv_heads, seq, head_dim] = case.sizes;
        let rows = batch * seq * head_dim;
        checker.check_differentiable(
            ("attention", &case.name()),
            [
                ("query", noise([rows * heads], 1)),
                ("key", noise([rows * kv_heads], 2)),
                ("value", noise([rows * kv_heads], 3)),
            ],
            |inputs| case.run(attention::attention, inputs),
            |inputs| case.run(attention::reference::attention, inputs),
            // In halves the weights, the output and the gradients are rounded.
            Bounds { single: 4e-6, roundings: 3.0, products: false },
        )?;
    }
    Ok(())
}

fn losses(checker: &mut Checker) -> Result<(), TrainError> {
    let cases = [
        ([3, 5, 7], CHUNK_ELEMENTS),
        ([67, 24, 331], CHUNK_ELEMENTS),
        ([130, 64, 1009], CHUNK_ELEMENTS),
        // So few logits at once that the vocabulary is cut.
        ([67, 24, 331], 4096),
    ];
    for ([tokens, dim, vocab], budget) in cases {
        let [hidden, weight] = [noise([tokens * dim], 0), noise([dim * vocab], 1)];
        // Logits are rounded, and a token's loss is off by as much as two of them; gradients are rounded four times.
        let logits =
            hidden.clone().reshape([tokens, dim]).matmul(weight.clone().reshape([dim, vocab]));
        let largest = f64::from(logits.abs().max().into_scalar::<f32>());
        let targets = targets(tokens, vocab);
        checker.check_differentiable(
            ("linear_cross_entropy", &format!("{tokens} x {dim} by {vocab}, {budget} logits")),
            [("hidden", hidden), ("weight", weight)],
            |[hidden, weight]| {
                let targets = whole_numbers(&targets, [tokens], &hidden.device());
                Tensor::<1>::from_dispatch(
                    <Dispatch as CrossEntropyOps>::fused_linear_cross_entropy(
                        hidden.reshape([tokens, dim]).into_dispatch(),
                        weight.reshape([dim, vocab]).into_dispatch(),
                        targets.into_dispatch(),
                        budget,
                    ),
                )
            },
            |[hidden, weight]| {
                let targets = whole_numbers(&targets, [tokens], &hidden.device());
                let (hidden, weight) =
                    (hidden.reshape([tokens, dim]), weight.reshape([dim, vocab]));
                cross_entropy::reference::linear_cross_entropy(hidden, weight, targets)
            },
            Bounds { single: 2e-6, roundings: 2.0 * largest + 4.0, products: true },
        )?;
    }
    Ok(())
}

/// Targets of which one in five does not count.
pub fn targets(tokens: usize, vocab: usize) -> Vec<i64> {
    let target = |i: i64| if i % 5 == 3 { IGNORE } else { (i * 7919) % vocab as i64 };
    (0..tokens as i64).map(target).collect()
}
