//! Interim.

use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouterScores {
    Softmax,
    Sigmoid,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    pub top_k: usize,
    pub scores: RouterScores,
    pub renormalise: bool,
    pub scale: f64,
    pub groups: Option<ExpertGroups>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertGroups {
    pub groups: usize,
    pub chosen: usize,
}

pub struct Routed {
    pub chosen: Tensor<2, Int>,
    pub weights: Tensor<2>,
    pub scores: Tensor<2>,
}

pub fn route(logits: Tensor<2>, bias: Option<Tensor<1>>, routing: &Routing) -> Routed {
    let [tokens, experts] = logits.dims();
    let device = logits.device().inner();
    let scores = match routing.scores {
        RouterScores::Softmax => softmax(logits, 1),
        RouterScores::Sigmoid => sigmoid(logits),
    };
    let plain = scores.clone().inner();
    let biased = match bias {
        Some(bias) => plain + bias.unsqueeze(),
        None => plain,
    };
    let values = biased.into_data().try_into_vec::<f32>().unwrap();
    let mut chosen = Vec::new();
    for row in values.chunks_exact(experts) {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        let mut best = order[..routing.top_k].to_vec();
        best.sort_unstable();
        chosen.extend(best.into_iter().map(|e| e as i32));
    }
    let chosen = Tensor::<2, Int>::from_data(
        TensorData::new(chosen, [tokens, routing.top_k]),
        (&device, DType::I32),
    );
    let mut weights = scores.clone().gather(1, chosen.clone());
    if routing.renormalise {
        let sum = weights.clone().sum_dim(1);
        weights = weights / (sum + 1e-20);
    }
    Routed { chosen, weights: weights * routing.scale, scores }
}

pub struct ExpertOrder {
    counts: Vec<usize>,
    tokens: Tensor<1, Int>,
    back: Tensor<1, Int>,
    top_k: usize,
}

impl ExpertOrder {
    pub fn new(chosen: &Tensor<2, Int>, experts: usize) -> Self {
        let [tokens, top_k] = chosen.dims();
        let device: Device = chosen.device();
        let host = chosen.clone().into_data().convert::<i32>().try_into_vec::<i32>().unwrap();
        let mut counts = vec![0; experts];
        for e in &host {
            counts[*e as usize] += 1;
        }
        let mut next: Vec<usize> = counts
            .iter()
            .scan(0, |s, c| {
                let at = *s;
                *s += c;
                Some(at)
            })
            .collect();
        let mut row_token = vec![0_i32; host.len()];
        let mut back = vec![0_i32; host.len()];
        for (slot, e) in host.iter().enumerate() {
            let place = next[*e as usize];
            next[*e as usize] += 1;
            row_token[place] = (slot / top_k) as i32;
            back[slot] = place as i32;
        }
        let ints = |v: Vec<i32>| {
            Tensor::<1, Int>::from_data(TensorData::new(v, [tokens * top_k]), (&device, DType::I32))
        };
        Self { counts, tokens: ints(row_token), back: ints(back), top_k }
    }

    pub fn counts(&self) -> &[usize] {
        &self.counts
    }
}

pub fn permute(x: Tensor<2>, order: &ExpertOrder) -> Tensor<2> {
    x.select(0, order.tokens.clone())
}

pub fn unpermute(rows: Tensor<2>, weights: Tensor<2>, order: &ExpertOrder) -> Tensor<2> {
    let [count, dim] = rows.dims();
    let tokens = count / order.top_k;
    let dtype = rows.dtype();
    let rows = rows.select(0, order.back.clone()).cast(DType::F32);
    let rows: Tensor<3> = rows.reshape([tokens, order.top_k, dim]);
    let weighted = rows * weights.unsqueeze_dim(2);
    weighted.sum_dim(1).reshape([tokens, dim]).cast(dtype)
}
