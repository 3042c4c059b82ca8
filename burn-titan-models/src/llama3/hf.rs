//! Llama models as Hugging Face has them.
//!
//! `config.json` is read in two styles ([`config_from_json`]). Query and key rows keep their order; weights in Meta's own
//! layout, where neighbours turn together, need [`meta_to_hf_rows`].

mod config_json;
mod rope_layout;

pub use config_json::{config_from_json, config_to_json};
pub use rope_layout::{hf_to_meta_rows, meta_to_hf_rows};

use std::path::Path;

use burn::tensor::Device;
use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::hf::HfFolder;
use burn_titan_core::model::HfExtras;

use super::config::LlamaConfig;
use super::modules;
use crate::attention::FusedAttention;
use crate::hf::{self, ATTENTION, FEED_FORWARD, ModelFolderError, NORMS, Names};

/// What the parameters are called there.
pub const NAMES: Names = Names { model: "Llama", block: &[NORMS, ATTENTION, FEED_FORWARD] };

/// The Hugging Face name of our parameter `name`, or `None` where it is not one.
pub fn hf_name(name: &str) -> Option<String> {
    NAMES.hf_name(name)
}

/// One of our parameters, under its Hugging Face name and in that layout.
///
/// # Errors
/// [`ModelFolderError::Name`] where it is not a parameter of a Llama model.
pub fn to_hf(parameter: HostTensor) -> Result<HostTensor, ModelFolderError> {
    NAMES.to_hf(parameter)
}

/// Names and shapes of all our parameters, from the embedding to the head; a tied head is none.
pub fn parameter_shapes(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    hf::parameter_shapes(&modules::units::<FusedAttention>(config, &Device::flex()))
}

/// Reads the config of a Hugging Face folder.
///
/// # Errors
/// [`ModelFolderError`] where `config.json` describes something other than a Llama model.
pub fn read_config(folder: &HfFolder) -> Result<LlamaConfig, ModelFolderError> {
    config_from_json(folder.config(), &folder.config_path())
}

/// Reads all parameters of a model of this `config`, in the order of [`parameter_shapes`], one at a
/// time. A folder that holds anything else is refused first.
///
/// # Errors
/// As of [`Names::read_parameters`].
pub fn read_parameters<'a>(
    folder: &'a HfFolder,
    config: &LlamaConfig,
) -> Result<impl Iterator<Item = Result<HostTensor, ModelFolderError>> + 'a, ModelFolderError> {
    NAMES.read_parameters(folder, parameter_shapes(config))
}

/// Writes a Hugging Face folder of our `parameters`, which must be exactly those of
/// [`parameter_shapes`], in any order, and are taken one at a time, with `extras`.
///
/// # Errors
/// As of [`Names::write_folder`].
pub fn write_folder<E: From<ModelFolderError>>(
    path: &Path,
    config: &LlamaConfig,
    parameters: impl IntoIterator<Item = Result<HostTensor, E>>,
    extras: &HfExtras<'_>,
    max_shard_bytes: u64,
) -> Result<(), E> {
    let json = |dtype| config_to_json(config, dtype);
    NAMES.write_folder(path, parameter_shapes(config), json, parameters, extras, max_shard_bytes)
}

#[cfg(test)]
mod tests;
