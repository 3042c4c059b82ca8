//! The `burn-titan` binary with an attention of its own: a token sees the last tokens of its document.

use std::process::ExitCode;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Int, Tensor};
use burn_titan_core::model::Context;
use burn_titan_models::rotary::Rotary;
use burn_titan_models::{Attention, AttentionConfig, Llama3, registry};

/// Tokens that a token sees, itself included.
const WINDOW: i64 = 32;

/// `softmax(Q K^T / sqrt(head_dim) + mask) V`, with as many key heads as query heads.
#[derive(Module, Debug)]
struct SlidingWindow {
    query_key_value: [Linear; 3],
    output: Linear,
    #[module(skip)]
    rotary: Rotary,
}

impl Attention for SlidingWindow {
    fn new(config: &AttentionConfig, device: &Device) -> Self {
        let (dim, width) = (config.dim, config.n_heads * config.head_dim);
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let query_key_value = [(); 3].map(|()| linear(dim, width));
        Self { query_key_value, output: linear(width, dim), rotary: config.rotary.clone() }
    }

    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let head_dim = self.rotary.head_dim as i32;
        // 0 keeps a dim, -1 stands for the number of heads.
        let heads = |linear: &Linear| linear.forward(x.clone()).reshape([0, 0, -1, head_dim]);
        let [query, key, value] = self.query_key_value.each_ref().map(heads);
        let query = self.rotary.forward(query, context).swap_dims(1, 2);
        let key = self.rotary.forward(key, context).swap_dims(1, 2);
        let scores = query.matmul(key.transpose()) / f64::from(head_dim).sqrt();
        let scores = scores.mask_fill(hidden(&context.first_key), f64::NEG_INFINITY);
        let mixed = softmax(scores, 3).matmul(value.swap_dims(1, 2));
        self.output.forward(mixed.swap_dims(1, 2).flatten(2, 3))
    }
}

/// `[batch, 1, seq, seq]`: true where a query (dim 2) must not see a key (dim 3).
fn hidden(first_key: &Tensor<2, Int>) -> Tensor<4, Bool> {
    let index = Tensor::<1, Int>::arange(0..first_key.dims()[1] as i64, &first_key.device());
    let (query, key) = (index.clone().reshape([1, 1, -1, 1]), index.reshape([1, 1, 1, -1]));
    let outside =
        key.clone().lower(query.clone() - (WINDOW - 1)).bool_or(key.clone().greater(query));
    key.lower(first_key.clone().unsqueeze_dims(&[1, 3])).bool_or(outside)
}

fn main() -> ExitCode {
    let llama = Llama3::default().with_attention::<SlidingWindow>("sliding_window");
    burn_titan_cli::main(registry().with(llama))
}
