//! Llama 3 as modules: a token embedding, blocks of attention and SwiGLU ([`Block`]), and a head.
//!
//! RMSNorm, rotary positions, grouped key and value heads, no biases.

use burn::tensor::Device;
use burn_titan_core::model::{Heads, Model, ParameterRole, PlanError, TensorPlan, Unit};

use super::config::LlamaConfig;
use crate::attention::{Attention, AttentionConfig};
use crate::block::Block;
use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::initial::initial;
use crate::norm::RmsNorm;
use crate::rotary::Rotary;
use crate::{embedding, head, plan};

/// The model of these sizes. Allocates nothing.
pub fn model<A: Attention>(config: &LlamaConfig) -> Model {
    let (dim, sizes) = (config.dim, config.clone());
    Model {
        config: config.to_value(),
        training_fields: &[],
        units: units::<A>(config, &Device::flex()),
        tensor_plan: Box::new(move || tensor_plan::<A>(&sizes)),
        role: Box::new(|_| ParameterRole::Dense),
        experts: None,
        shares_sequences: A::SHARES_SEQUENCES,
        vocab_size: config.vocab_size,
        max_seq_len: config.max_seq_len,
        dim,
        attention_width: config.n_layers * config.n_heads * config.head_dim,
        embedding: "tok_embeddings.weight",
        initial: Box::new(move |spec| initial(dim, spec)),
    }
}

/// Embedding, blocks, head.
fn units<A: Attention>(config: &LlamaConfig, device: &Device) -> Vec<Box<dyn Unit>> {
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

/// The sizes of a block's attention.
fn attention_config(config: &LlamaConfig) -> AttentionConfig {
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

/// How ranks that split matrix products share the parameters.
fn tensor_plan<A: Attention>(config: &LlamaConfig) -> Result<TensorPlan, PlanError> {
    let attention = A::plan(&attention_config(config), &Device::flex())?;
    let heads = Heads { query: config.n_heads, key: config.n_kv_heads };
    let sublayers = [("attention", attention), ("feed_forward", FeedForward::plan())];
    Ok(plan::tensor_plan(heads, sublayers))
}
