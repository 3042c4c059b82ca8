//! How the parameters of a Llama lie on the ranks that split its matrix products.

use burn::tensor::Device;
use burn_titan_core::model::{Heads, PlanError, Split, TensorPlan};

use super::config::LlamaConfig;
use super::modules::attention_config;
use crate::attention::Attention;

/// All but the attention, which says itself how it is split.
const LINES: [(&str, Split); 6] = [
    ("tok_embeddings.weight", Split::Shard(0)),
    ("layers.*.{attention_norm,ffn_norm}.weight", Split::Replicate),
    ("layers.*.feed_forward.{w1,w3}.weight", Split::Shard(1)),
    ("layers.*.feed_forward.w2.weight", Split::Shard(0)),
    ("norm.weight", Split::Replicate),
    ("output.weight", Split::Shard(1)),
];

/// The plan of a model.
///
/// # Errors
/// If the attention does not say how it is split.
pub fn tensor_plan<A: Attention>(
    config: &LlamaConfig,
    device: &Device,
) -> Result<TensorPlan, PlanError> {
    let attention = A::plan(&attention_config(config), device)?;
    let attention =
        attention.into_iter().map(|(name, split)| (format!("layers.*.attention.{name}"), split));
    let lines = LINES.iter().map(|(pattern, split)| (pattern.to_string(), *split));
    Ok(TensorPlan {
        lines: lines.chain(attention).collect(),
        heads: Heads { query: config.n_heads, key: config.n_kv_heads },
    })
}
