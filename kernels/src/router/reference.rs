//! The router by plain tensor operations, with the choice by sorting in f64.

use std::cmp::Ordering;

use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{GroupScore, Routed, RouterScores, Routing};

/// See [`super::route`].
pub fn route(logits: Tensor<2>, bias: Option<Tensor<1>>, routing: &Routing) -> Routed {
    let [tokens, experts] = logits.dims();
    let scores = match routing.scores {
        RouterScores::Softmax => softmax(logits.clone(), 1),
        RouterScores::Sigmoid => sigmoid(logits.clone()),
    };
    let bias = bias.map_or(vec![0.0; experts], |bias| numbers(bias.inner()));
    let all = numbers(scores.clone().inner());
    let mut chosen = Vec::new();
    for token in all.chunks(experts) {
        let biased: Vec<f64> = token.iter().zip(&bias).map(|(score, bias)| score + bias).collect();
        chosen.extend(choose(&biased, routing).into_iter().map(|expert| expert as i64));
    }
    let chosen = TensorData::new(chosen, [tokens, routing.top_k]);
    let chosen: Tensor<2, Int> = Tensor::from_data(chosen, &scores.device().inner());
    let weights = scores.clone().gather(1, chosen.clone());
    let sum = weights.clone().sum_dim(1) + 1e-20;
    let weights = if routing.renormalise { weights / sum } else { weights };
    Routed { chosen, weights: weights * routing.scale, scores, logits }
}

fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.cast(DType::F64).into_data().iter::<f64>().collect()
}

/// The experts of a token, ascending.
fn choose(scores: &[f64], routing: &Routing) -> Vec<usize> {
    let experts: Vec<usize> = (0..scores.len()).collect();
    let Some(groups) = routing.groups else {
        return best(experts, routing.top_k, |expert| scores[*expert]);
    };
    let members = experts.chunks(experts.len() / groups.groups).map(<[usize]>::to_vec);
    let taken = match groups.by {
        GroupScore::Best => 1,
        GroupScore::BestTwo => 2,
    };
    let of_group = |group: &Vec<usize>| {
        let best = best(group.clone(), taken, |expert| scores[*expert]);
        best.iter().map(|expert| scores[*expert]).sum()
    };
    let eligible = best(members.collect(), groups.chosen, of_group).concat();
    best(eligible, routing.top_k, |expert| scores[*expert])
}

/// The `k` best, in ascending order; of equals the lower.
fn best<T: Ord>(mut all: Vec<T>, k: usize, score: impl Fn(&T) -> f64) -> Vec<T> {
    all.sort_by(|a, b| {
        let by_score = score(b).partial_cmp(&score(a)).unwrap_or(Ordering::Equal);
        by_score.then(a.cmp(b))
    });
    all.truncate(k);
    all.sort();
    all
}
