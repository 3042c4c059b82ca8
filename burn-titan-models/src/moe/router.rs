//! The choice of experts.

use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use burn_titan_core::model::Agree;
use burn_titan_kernels::{Routed, Routing, linear_f32, route_agreed};

/// Scores experts by one matrix, with a product in f32, whatever the rest computes in: close scores decide which expert a
/// token meets. The matrix itself comes in the format of the rest, as all that ranks gather.
#[derive(Module, Debug)]
pub struct Router {
    /// `[dim, experts]`.
    weight: Param<Tensor<2>>,
    /// Added to the scores for the choice alone, `[experts]`: moved by the load of the experts, not by gradients.
    bias: Option<Param<Tensor<1>>>,
}

impl Router {
    /// Allocates nothing.
    pub fn new(dim: usize, experts: usize, balanced: bool, device: &Device) -> Self {
        let Linear { weight, .. } = LinearConfig::new(dim, experts).with_bias(false).init(device);
        let bias = balanced.then(|| Initializer::Zeros.init([experts], device));
        Self { weight, bias }
    }

    /// The experts of tokens `[tokens, dim]`, as ranks that have the same tokens agree on them, with their weights.
    pub fn forward(&self, tokens: Tensor<2>, routing: &Routing, agree: Agree<'_>) -> Routed {
        let logits = linear_f32(tokens, self.weight.val());
        let bias = self.bias.as_ref().map(|bias| bias.val().inner());
        route_agreed(logits, bias, routing, agree)
    }
}
