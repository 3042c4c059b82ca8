//! Llama models as Hugging Face has them.
//!
//! Query and key rows keep their order; weights in Meta's own layout, where neighbours turn together, need
//! [`meta_to_hf_rows`].

mod config_json;
mod rope_layout;

pub use rope_layout::{hf_to_meta_rows, meta_to_hf_rows};

use burn_titan_core::checkpoint::HostTensor;

use super::config::LlamaConfig;
use crate::hf::{HuggingFace, ModelFolderError};

/// The Hugging Face name of our parameter `name`, or `None` where it is not one.
pub fn hf_name(name: &str) -> Option<String> {
    LlamaConfig::NAMES.hf_name(name)
}

/// One of our parameters, under its Hugging Face name and in that layout.
///
/// # Errors
/// [`ModelFolderError::Name`] where it is not a parameter of a Llama model.
pub fn to_hf(parameter: HostTensor) -> Result<HostTensor, ModelFolderError> {
    LlamaConfig::NAMES.to_hf(parameter)
}

/// Names and shapes of all our parameters, from the embedding to the head; a tied head is none.
pub fn parameter_shapes(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    config.parameter_shapes()
}

#[cfg(test)]
mod tests;
