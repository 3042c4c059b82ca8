//! Attention as a module that a block can exchange.
//!
//! A custom attention is a plain Burn module: implement [`Attention`] and register it under a name
//! with [`crate::Llama3::with_attention`]; `model.attention` in the YAML then picks it.

use burn::module::{Module, ModuleDisplay};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use burn_titan_core::model::Context;
use burn_titan_kernels::{AttentionMask, Scores, attention};

use crate::linear::linear;
use crate::rotary::Rotary;

/// The sizes that a block gives its attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The rotation of queries and keys.
    pub rotary: Rotary,
}

/// What a block needs of its attention.
pub trait Attention: Module + ModuleDisplay + Sync + 'static {
    /// The module for these sizes. Parameters must be lazy (as those of `burn::nn` are): the module
    /// is made to know its shapes, and gets its values later.
    fn new(config: &AttentionConfig, device: &Device) -> Self;

    /// `[batch, seq, dim]` to `[batch, seq, dim]`. A token must see only tokens of its own document,
    /// from `context.first_key` to itself.
    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3>;
}

/// Causal attention with grouped key and value heads and RoPE, by the fused kernel.
#[derive(Module, Debug)]
pub struct FusedAttention {
    /// Queries: `[dim, n_heads * head_dim]`.
    pub wq: Linear,
    /// Keys: `[dim, n_kv_heads * head_dim]`.
    pub wk: Linear,
    /// Values: `[dim, n_kv_heads * head_dim]`.
    pub wv: Linear,
    /// Back to the residual stream: `[n_heads * head_dim, dim]`.
    pub wo: Linear,
    #[module(skip)]
    rotary: Rotary,
}

impl Attention for FusedAttention {
    fn new(config: &AttentionConfig, device: &Device) -> Self {
        let AttentionConfig { dim, n_heads, n_kv_heads, head_dim, rotary } = config;
        let linear =
            |from: usize, to: usize| LinearConfig::new(from, to).with_bias(false).init(device);
        Self {
            wq: linear(*dim, n_heads * head_dim),
            wk: linear(*dim, n_kv_heads * head_dim),
            wv: linear(*dim, n_kv_heads * head_dim),
            wo: linear(n_heads * head_dim, *dim),
            rotary: rotary.clone(),
        }
    }

    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let head_dim = self.rotary.head_dim;
        // Head counts come from the weights, so that a shard of them is the same module.
        let heads = |y: Tensor<3>| {
            let n = y.dims()[2] / head_dim;
            y.reshape([batch, seq, n, head_dim])
        };
        let query = heads(linear(x.clone(), self.wq.weight.val()));
        let key = heads(linear(x.clone(), self.wk.weight.val()));
        let value = heads(linear(x, self.wv.weight.val()));
        let [query, key] = [query, key].map(|y| self.rotary.forward(y, context));
        let mask = || AttentionMask::documents(context.first_key.clone());
        let output = attention(
            query.swap_dims(1, 2),
            key.swap_dims(1, 2),
            value.swap_dims(1, 2),
            &context.shared("attention mask", mask),
            Scores::scaled(head_dim),
        )
        .output;
        let [_, n, _, _] = output.dims();
        let output = output.swap_dims(1, 2).reshape([batch, seq, n * head_dim]);
        linear(output, self.wo.weight.val())
    }
}
