//! A dense block of DeepSeek: latent attention and SwiGLU.

use burn::tensor::Device;
use burn_titan_core::model::{Heads, TensorPlan};

use super::attention::LatentAttention;
use super::config::DeepSeekV3Config;
use crate::block::Block;
use crate::feed_forward::FeedForward;
use crate::norm::RmsNorm;
use crate::plan;

/// A block with a dense feed-forward. Allocates nothing.
pub fn dense_block(
    config: &DeepSeekV3Config,
    device: &Device,
) -> Block<LatentAttention, FeedForward> {
    let norm = || RmsNorm::new(config.dim, config.norm_eps, device);
    Block {
        attention_norm: norm(),
        attention: LatentAttention::new(config, device),
        ffn_norm: norm(),
        feed_forward: FeedForward::new(config.dim, config.ffn_dim, device),
    }
}

/// How ranks that split matrix products share the parameters of a model of such blocks.
pub fn tensor_plan(config: &DeepSeekV3Config) -> TensorPlan {
    let heads = Heads { query: config.n_heads, key: config.n_heads };
    let feed_forward = ("feed_forward", FeedForward::plan());
    plan::tensor_plan(heads, [("attention", LatentAttention::plan()), feed_forward])
}
