//! Losses that keep the loads of experts balanced.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

use crate::wide::widened;

/// The balance loss of each sequence, `alpha sum over i of f_i P_i`, with `f_i = experts / (k T) * (tokens that chose
/// expert i)` and `P_i` the mean over its `T` tokens of `s_i / (sum over j of s_j)`. It is `alpha` where loads and
/// scores are even. Differentiable in the scores. (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, equations 17 to
/// 20.)
///
/// # Shapes
/// - `scores`: `[sequences * T, experts]`, the tokens of a sequence together
/// - `chosen`: `[sequences * T, k]`
/// - result: `[sequences]` in f32
///
/// # Panics
/// If the tokens are not cut evenly into sequences.
pub fn sequence_balance_loss(
    scores: Tensor<2>,
    chosen: &Tensor<2, Int>,
    sequences: usize,
    alpha: f64,
) -> Tensor<1> {
    let ([tokens, experts], [_, top_k]) = (scores.dims(), chosen.dims());
    assert!(
        sequences > 0 && tokens.is_multiple_of(sequences),
        "{tokens} tokens in {sequences} sequences"
    );
    let length = tokens / sequences;
    let scores = widened(scores);
    let kind = (&scores.device().inner(), scores.dtype());
    let loads = Tensor::<2>::zeros([tokens, experts], kind).scatter(
        1,
        chosen.clone().inner(),
        Tensor::ones([tokens, top_k], kind),
        IndexingUpdateOp::Add,
    );
    let by_sequence = |x: Tensor<2>| x.reshape([sequences, length, experts]).sum_dim(1);
    let sums = scores.clone().sum_dim(1);
    let share = by_sequence(scores / sums);
    let factor = alpha * experts as f64 / (top_k * length * length) as f64;
    let loss = (by_sequence(loads) * share).sum_dim(2) * factor;
    loss.reshape([sequences]).cast(DType::F32)
}

/// The mean over tokens of `(log sum over i of e^logit_i)^2`, which keeps logits small: `[1]`. Differentiable. (Zoph et
/// al., "ST-MoE: Designing Stable and Transferable Sparse Expert Models", 2022, equation 5.)
///
/// # Shapes
/// - `logits`: `[tokens, experts]`
pub fn router_z_loss(logits: Tensor<2>) -> Tensor<1> {
    let logits = widened(logits);
    let top = logits.clone().detach().max_dim(1);
    let log_sum_exp = (logits - top.clone()).exp().sum_dim(1).log() + top;
    log_sum_exp.square().mean()
}
