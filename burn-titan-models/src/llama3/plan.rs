//! How the parameters of a Llama lie on the ranks that split its matrix products.

use burn::tensor::Device;
use burn_titan_core::model::{Heads, PlanError, TensorPlan};

use super::config::LlamaConfig;
use super::modules::attention_config;
use crate::attention::Attention;
use crate::feed_forward::FeedForward;
use crate::plan;

/// The plan of a model.
///
/// # Errors
/// If the attention does not say how it is split.
pub fn tensor_plan<A: Attention>(
    config: &LlamaConfig,
    device: &Device,
) -> Result<TensorPlan, PlanError> {
    let attention = A::plan(&attention_config(config), device)?;
    let heads = Heads { query: config.n_heads, key: config.n_kv_heads };
    Ok(plan::tensor_plan(heads, [("attention", attention), ("feed_forward", FeedForward::plan())]))
}
