//! Llama models as Hugging Face has them: names, layouts, `config.json`.
//!
//! Three things differ from ours. Tensors have other names ([`hf_name`]). Linear weights are
//! `[out, in]` there and `[in, out]` here, as Burn's `Linear` has them, so they are transposed.
//! `config.json` has other keys, in two styles ([`config_from_json`]). RoPE is half-split in both, so
//! query and key rows keep their order; weights in Meta's own layout need [`meta_to_hf_rows`].

mod config_json;
mod error;
mod names;
mod rope_layout;

pub use config_json::{config_from_json, config_to_json};
pub use error::LlamaHfError;
pub use names::{hf_name, is_linear, our_name, parameter_shapes};
pub use rope_layout::{hf_to_meta_rows, meta_to_hf_rows};

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::hf::{HfFolder, HfWriter};
use burn_titan_core::model::HfExtras;

use super::config::LlamaConfig;

/// Reads the config of a Hugging Face folder.
///
/// # Errors
/// [`LlamaHfError`] where `config.json` describes something other than a Llama model.
pub fn read_config(folder: &HfFolder) -> Result<LlamaConfig, LlamaHfError> {
    config_from_json(folder.config(), &folder.config_path())
}

/// Reads one of our parameters from a Hugging Face folder: `[in, out]` for linear weights, in the
/// element type that is stored.
///
/// # Errors
/// [`LlamaHfError`] where the tensor is missing or has another shape than `shape`, which is ours.
pub fn read_parameter(
    folder: &HfFolder,
    name: &str,
    shape: &[usize],
) -> Result<HostTensor, LlamaHfError> {
    let hf_name = hf_name(name).ok_or_else(|| LlamaHfError::Name { name: name.into() })?;
    let view = folder.view(&hf_name)?;
    let mut expected = shape.to_vec();
    if is_linear(name) {
        expected.reverse();
    }
    if view.shape != expected {
        return Err(LlamaHfError::Shape {
            folder: folder.path().to_path_buf(),
            name: hf_name,
            found: view.shape.to_vec(),
            expected,
        });
    }
    let tensor = view.to_tensor().renamed(name);
    Ok(if is_linear(name) { tensor.transposed()? } else { tensor })
}

/// Reads all parameters of a model of this `config`, in the order of [`parameter_shapes`], one at a
/// time. A folder that holds anything else is refused first.
///
/// # Errors
/// [`LlamaHfError::Unexpected`] at once; others as the parameters are read.
pub fn read_parameters<'a>(
    folder: &'a HfFolder,
    config: &LlamaConfig,
) -> Result<impl Iterator<Item = Result<HostTensor, LlamaHfError>> + 'a, LlamaHfError> {
    let shapes = parameter_shapes(config);
    let known: BTreeSet<String> = shapes.iter().filter_map(|(name, _)| hf_name(name)).collect();
    if let Some(name) = folder.names().find(|name| !known.contains(*name) && !is_harmless(name)) {
        let (folder, name) = (folder.path().to_path_buf(), name.to_string());
        return Err(LlamaHfError::Unexpected { folder, name });
    }
    Ok(shapes.into_iter().map(move |(name, shape)| read_parameter(folder, &name, &shape)))
}

/// Tensors that older folders hold though the rest of the folder determines them: RoPE frequencies,
/// and the head of a tied model.
fn is_harmless(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight"
}

/// One of our parameters, under its Hugging Face name and in that layout.
///
/// # Errors
/// [`LlamaHfError::Name`] where it is not a parameter of a Llama model.
pub fn to_hf(parameter: HostTensor) -> Result<HostTensor, LlamaHfError> {
    let Some(name) = hf_name(parameter.name()) else {
        return Err(LlamaHfError::Name { name: parameter.name().into() });
    };
    Ok(if is_linear(parameter.name()) {
        parameter.transposed()?.renamed(name)
    } else {
        parameter.renamed(name)
    })
}

/// Writes a Hugging Face folder of our `parameters`, which must be exactly those of
/// [`parameter_shapes`], in any order, and are taken one at a time, with `extras`.
///
/// # Errors
/// [`LlamaHfError`] where a parameter is missing, unknown or of the wrong shape, or where the disk
/// refuses. Nothing is left behind then.
pub fn write_folder<E: From<LlamaHfError>>(
    path: &Path,
    config: &LlamaConfig,
    parameters: impl IntoIterator<Item = Result<HostTensor, E>>,
    extras: &HfExtras<'_>,
    max_shard_bytes: u64,
) -> Result<(), E> {
    let mut missing: BTreeMap<_, _> = parameter_shapes(config).into_iter().collect();
    let mut writer: Option<HfWriter> = None;
    for parameter in parameters {
        let parameter = parameter?;
        let Some(expected) = missing.remove(parameter.name()) else {
            return Err(LlamaHfError::Name { name: parameter.name().into() }.into());
        };
        if parameter.shape() != expected {
            let (name, found) = (parameter.name().to_string(), parameter.shape().to_vec());
            let folder = path.to_path_buf();
            return Err(LlamaHfError::Shape { folder, name, found, expected }.into());
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let mut json = config_to_json(config, parameter.dtype());
                // `transformers` takes 1 and 2 where the keys are absent, but nothing for null.
                json["bos_token_id"] = extras.bos_token_id.into();
                json["eos_token_id"] = extras.eos_token_id.into();
                let created = HfWriter::create(path, &json, max_shard_bytes);
                writer.insert(created.map_err(LlamaHfError::from)?)
            }
        };
        writer.write(to_hf(parameter)?).map_err(LlamaHfError::from)?;
    }
    let (Some(writer), None) = (writer, missing.keys().next()) else {
        let name = missing.keys().next().cloned().unwrap_or_default();
        return Err(LlamaHfError::MissingParameter { name }.into());
    };
    for (name, contents) in extras.files {
        writer.add_file(name, contents).map_err(LlamaHfError::from)?;
    }
    Ok(writer.finish().map_err(LlamaHfError::from)?)
}

#[cfg(test)]
mod tests;
