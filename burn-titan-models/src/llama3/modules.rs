//! Llama 3 as modules: a token embedding, blocks of attention and SwiGLU ([`Block`]), and a head.
//!
//! RMSNorm, rotary positions, grouped key and value heads, no biases.

use burn::tensor::Device;
use burn_titan_core::model::Unit;

use super::config::LlamaConfig;
use crate::attention::{Attention, AttentionConfig};
use crate::block::Block;
use crate::feed_forward::FeedForward;
use crate::norm::RmsNorm;
use crate::rotary::Rotary;
use crate::{embedding, head};

/// The sizes of a block's attention.
pub(super) fn attention_config(config: &LlamaConfig) -> AttentionConfig {
    AttentionConfig {
        dim: config.dim,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        rotary: Rotary {
            head_dim: config.head_dim,
            theta: config.rope_theta,
            scaling: config.rope_scaling,
        },
    }
}

/// The units of a model: embedding, blocks, head. Allocates nothing.
pub fn units<A: Attention>(config: &LlamaConfig, device: &Device) -> Vec<Box<dyn Unit>> {
    let norm = || RmsNorm::new(config.dim, config.norm_eps, device);
    let attention = attention_config(config);
    let block = |_| Block {
        attention_norm: norm(),
        attention: A::new(&attention, device),
        ffn_norm: norm(),
        feed_forward: FeedForward::new(config.dim, config.ffn_dim, device),
    };
    let mut units = vec![embedding::unit(config.vocab_size, config.dim, device)];
    units.extend((0..config.n_layers).map(block).enumerate().map(|(i, block)| block.unit(i)));
    units.push(head::unit(norm(), config.vocab_size, config.tie_embeddings, device));
    units
}
