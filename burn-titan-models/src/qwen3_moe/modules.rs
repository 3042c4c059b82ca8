//! Qwen3 with experts as modules: as the dense ones ([`crate::qwen3`]), with a mixture of experts in every block.

use burn::tensor::Device;
use burn_titan_core::model::{Experts, Heads, Model, PlanError, TensorPlan, Unit};
use burn_titan_kernels::{RouterScores, Routing};

use super::config::Qwen3MoeConfig;
use crate::attention::{Attention, AttentionConfig};
use crate::block::Block;
use crate::config::ModelConfig;
use crate::moe::{self, MixtureOfExperts, MoeConfig};
use crate::norm::RmsNorm;
use crate::rotary::Rotary;
use crate::{embedding, head, initial, plan};

/// The model of these sizes. Allocates nothing.
pub fn model<A: Attention>(config: &Qwen3MoeConfig) -> Model {
    let (dim, tied, sizes) = (config.dim, config.tie_embeddings, config.clone());
    Model {
        config: config.to_value(),
        training_fields: moe::TRAINING_FIELDS,
        units: units::<A>(config, &Device::flex()),
        tensor_plan: Box::new(move || tensor_plan::<A>(&sizes)),
        role: Box::new(moe::role),
        experts: Some(experts(config)),
        shares_sequences: A::SHARES_SEQUENCES,
        vocab_size: config.vocab_size,
        max_seq_len: config.max_seq_len,
        dim,
        attention_width: config.n_layers * config.n_heads * config.head_dim,
        embedding: "tok_embeddings.weight",
        initial: Box::new(move |spec| match spec.name.as_str() {
            // As the output matrix that it is too.
            "tok_embeddings.weight" if tied => initial::output(dim),
            _ => initial::initial(dim, spec),
        }),
    }
}

/// Embedding, blocks, head.
fn units<A: Attention>(config: &Qwen3MoeConfig, device: &Device) -> Vec<Box<dyn Unit>> {
    let norm = || RmsNorm::new(config.dim, config.norm_eps, device);
    let attention = attention_config(config);
    let block = |layer| Block {
        attention_norm: norm(),
        attention: A::new(&attention, device).with_query_key_norm(config.norm_eps, device),
        ffn_norm: norm(),
        feed_forward: MixtureOfExperts::new(&moe_config(config, layer), device),
    };
    let mut units = vec![embedding::unit(config.vocab_size, config.dim, device)];
    units.extend((0..config.n_layers).map(|layer| block(layer).unit(layer)));
    units.push(head::unit(norm(), config.vocab_size, config.tie_embeddings, device));
    units
}

/// The sizes of a block's attention.
fn attention_config(config: &Qwen3MoeConfig) -> AttentionConfig {
    let Qwen3MoeConfig { dim, n_heads, n_kv_heads, head_dim, rope_theta: theta, .. } = *config;
    let rotary = Rotary { head_dim, theta, scaling: None };
    AttentionConfig { dim, n_heads, n_kv_heads, head_dim, rotary }
}

/// The sizes of a block's experts.
fn moe_config(config: &Qwen3MoeConfig, layer: usize) -> MoeConfig {
    MoeConfig {
        dim: config.dim,
        experts: config.n_experts,
        expert_dim: config.expert_dim,
        shared_dim: 0,
        routing: Routing {
            top_k: config.top_k,
            scores: RouterScores::Softmax,
            renormalise: config.renormalise,
            scale: 1.0,
            groups: None,
        },
        balanced: config.balanced(),
        losses: config.auxiliary_losses(),
        layer,
    }
}

fn experts(config: &Qwen3MoeConfig) -> Experts {
    let bias = |layer| format!("layers.{layer}.feed_forward.router.bias");
    Experts {
        each: config.n_experts,
        met: config.top_k,
        layers: config.n_layers,
        biases: match config.balanced() {
            true => (0..config.n_layers).map(bias).collect(),
            false => vec![],
        },
        bias_rate: config.load_balance_rate,
        losses: config.auxiliary_losses(),
    }
}

/// How ranks that split matrix products share the parameters.
fn tensor_plan<A: Attention>(config: &Qwen3MoeConfig) -> Result<TensorPlan, PlanError> {
    let attention = A::plan(&attention_config(config), &Device::flex())?;
    let heads = Heads { query: config.n_heads, key: config.n_kv_heads };
    let sublayers = [("attention", attention), ("feed_forward", MixtureOfExperts::plan(false))];
    Ok(plan::tensor_plan(heads, sublayers))
}
