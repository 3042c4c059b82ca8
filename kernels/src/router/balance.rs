//! Losses that keep the loads of experts balanced, as sums over the tokens at hand: where a sequence or a batch is cut
//! over ranks, the sums of their losses are that of the whole.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

use crate::wide::widened;

/// How many tokens of each sequence chose each expert, `[sequences, experts]` in f32, which counts exactly up to 2^24.
///
/// # Shapes
/// - `chosen`: `[tokens, k]`, ids below `experts`
/// - `sequence`: `[tokens]`, the sequence of each token, below `sequences`
pub fn sequence_loads(
    chosen: &Tensor<2, Int>,
    sequence: &Tensor<1, Int>,
    sequences: usize,
    experts: usize,
) -> Tensor<2> {
    let chosen = chosen.clone().inner();
    let ([tokens, top_k], kind) = (chosen.dims(), (&chosen.device(), DType::F32));
    let by_token = Tensor::<2>::zeros([tokens, experts], kind).scatter(
        1,
        chosen,
        Tensor::ones([tokens, top_k], kind),
        IndexingUpdateOp::Add,
    );
    let loads = Tensor::zeros([sequences, experts], kind);
    loads.select_assign(0, sequence.clone().inner(), by_token, IndexingUpdateOp::Add)
}

/// The sum over sequences of the balance loss of each, `alpha sum over i of f_i P_i`, with `f_i = experts / (k T) *
/// (tokens that chose expert i)` and `P_i` the mean over its `T` tokens of `s_i / (sum over j of s_j)`. It is `alpha` a
/// sequence where loads and scores are even. Of a token of the sequence, the share `P_i / T` alone depends on its
/// scores, so tokens of some ranks add their parts. Differentiable in the scores. (DeepSeek-AI, "DeepSeek-V3 Technical
/// Report", 2024, equations 17 to 20.)
///
/// # Shapes
/// - `scores`: `[tokens, experts]`
/// - `loads`: `[sequences, experts]`, those of whole sequences ([`sequence_loads`], summed over ranks)
/// - `sequence`: `[tokens]`, the sequence of each token
/// - `length`: `T`, the tokens of a whole sequence, of which each chose `top_k` experts
/// - result: `[1]` in f32
pub fn sequence_balance_loss(
    scores: Tensor<2>,
    loads: Tensor<2>,
    sequence: &Tensor<1, Int>,
    [length, top_k]: [usize; 2],
    alpha: f64,
) -> Tensor<1> {
    let experts = scores.dims()[1];
    let scores = widened(scores);
    let share = scores.clone() / scores.sum_dim(1);
    let loads = loads.inner().select(0, sequence.clone().inner()).cast(share.dtype());
    let factor = alpha * experts as f64 / (top_k * length * length) as f64;
    ((share * loads).sum() * factor).cast(DType::F32)
}

/// The sum over tokens of `(log sum over i of e^logit_i)^2`, which keeps logits small: `[1]`. Differentiable. (Zoph et
/// al., "ST-MoE: Designing Stable and Transferable Sparse Expert Models", 2022, equation 5, before its mean.)
///
/// # Shapes
/// - `logits`: `[tokens, experts]`
pub fn router_z_loss(logits: Tensor<2>) -> Tensor<1> {
    let logits = widened(logits);
    let top = logits.clone().detach().max_dim(1);
    let log_sum_exp = (logits - top.clone()).exp().sum_dim(1).log() + top;
    log_sum_exp.square().sum()
}
