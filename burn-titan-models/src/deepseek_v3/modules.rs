//! DeepSeek as modules: blocks of latent attention, the first ones with a dense feed-forward, the others with experts.

use burn::tensor::Device;
use burn_titan_core::model::{Experts, Heads, Model, TensorPlan, Unit};

use super::attention::LatentAttention;
use super::config::DeepSeekV3Config;
use crate::block::{Block, Sublayer};
use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::moe::{self, MixtureOfExperts, MoeConfig};
use crate::norm::RmsNorm;
use crate::{embedding, head, initial, plan};

/// The model of these sizes. Allocates nothing.
pub fn model(config: &DeepSeekV3Config) -> Model {
    let (dim, sizes) = (config.dim, config.clone());
    Model {
        config: config.to_value(),
        training_fields: moe::TRAINING_FIELDS,
        units: units(config, &Device::flex()),
        tensor_plan: Box::new(move || Ok(tensor_plan(&sizes))),
        role: Box::new(moe::role),
        experts: experts(config),
        shares_sequences: true,
        vocab_size: config.vocab_size,
        max_seq_len: config.max_seq_len,
        dim,
        attention_width: config.n_layers * config.n_heads * config.qk_head_dim(),
        embedding: "tok_embeddings.weight",
        initial: Box::new(move |spec| initial::initial(dim, spec)),
    }
}

/// Embedding, blocks, head.
fn units(config: &DeepSeekV3Config, device: &Device) -> Vec<Box<dyn Unit>> {
    let mut units = vec![embedding::unit(config.vocab_size, config.dim, device)];
    units.extend((0..config.n_layers).map(
        |layer| match layer.checked_sub(config.n_dense_layers) {
            None => {
                let dense = FeedForward::new(config.dim, config.ffn_dim, device);
                block(config, dense, device).unit(layer)
            }
            Some(place) => {
                let experts = MixtureOfExperts::new(&moe_config(config, place), device);
                block(config, experts, device).unit(layer)
            }
        },
    ));
    units.push(head::unit(norm(config, device), config.vocab_size, false, device));
    units
}

fn norm(config: &DeepSeekV3Config, device: &Device) -> RmsNorm {
    RmsNorm::new(config.dim, config.norm_eps, device)
}

fn block<F: Sublayer>(
    config: &DeepSeekV3Config,
    feed_forward: F,
    device: &Device,
) -> Block<LatentAttention, F> {
    Block {
        attention_norm: norm(config, device),
        attention: LatentAttention::new(config, device),
        ffn_norm: norm(config, device),
        feed_forward,
    }
}

/// The sizes of a block's experts; `layer` counts those blocks alone that have some.
fn moe_config(config: &DeepSeekV3Config, layer: usize) -> MoeConfig {
    MoeConfig {
        dim: config.dim,
        experts: config.n_experts,
        expert_dim: config.expert_dim,
        shared_dim: config.n_shared_experts * config.expert_dim,
        routing: config.routing(),
        balanced: config.balanced(),
        losses: config.auxiliary_losses(),
        layer,
    }
}

/// The experts of all blocks; `None` where all are dense.
fn experts(config: &DeepSeekV3Config) -> Option<Experts> {
    let layers = config.n_dense_layers..config.n_layers;
    let bias = |layer| format!("layers.{layer}.feed_forward.router.bias");
    (!layers.is_empty()).then(|| Experts {
        each: config.n_experts,
        met: config.top_k,
        layers: layers.len(),
        biases: if config.balanced() { layers.map(bias).collect() } else { vec![] },
        bias_rate: config.load_balance_rate,
        losses: config.auxiliary_losses(),
    })
}

/// How ranks that split matrix products share the parameters of both kinds of blocks.
fn tensor_plan(config: &DeepSeekV3Config) -> TensorPlan {
    let heads = Heads { query: config.n_heads, key: config.n_heads };
    let shared = config.n_shared_experts > 0;
    let sublayers = [
        ("attention", LatentAttention::plan()),
        ("feed_forward", FeedForward::plan()),
        ("feed_forward", MixtureOfExperts::plan(shared)),
    ];
    plan::tensor_plan(heads, sublayers)
}
