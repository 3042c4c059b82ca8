//! Hugging Face folders of any family: names, layouts, `config.json`.
//!
//! Tensors have other names there ([`Names`]), and what is one tensor here may be several there, or a part of one. Linear
//! weights are `[out, in]` there and `[in, out]` here, as Burn's `Linear` has them, so they are transposed. RoPE is
//! half-split in both, so query and key rows keep their order.

mod config_json;
mod error;
mod names;
mod tensors;
#[cfg(test)]
mod tests;

pub use config_json::{Keys, dtype_name, rope_parameters};
pub use error::ModelFolderError;
pub use names::{
    ATTENTION, EXPERTS, FEED_FORWARD, NORMS, Names, Pairs, QUERY_KEY_NORMS, Theirs, UNBALANCED,
};
pub use tensors::HfTensors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn_titan_core::checkpoint::{HostDtype, HostTensor};
use burn_titan_core::hf::{HfFolder, HfWriter};
use burn_titan_core::model::{HfExtras, Model};
use serde_json::Value;

use crate::config::ModelConfig;

/// Sizes of a family whose models Hugging Face has too.
pub trait HuggingFace: ModelConfig {
    /// The name in `architectures` of `config.json`.
    const ARCHITECTURE: &'static str;
    /// The `model_type` there.
    const MODEL_TYPE: &'static str;
    /// Other names and types of models that are of this family too.
    const OTHERS: &'static [(&'static str, &'static str)] = &[];
    /// What the parameters are called.
    const NAMES: Names;

    /// What they are called in a model of these sizes, where that differs.
    fn names(&self) -> Names {
        Self::NAMES
    }

    /// Whether a tensor of a folder with this `config.json` is of something that our models do without, and compute the
    /// same.
    fn is_beside(_tensor: &str, _config: &Value) -> bool {
        false
    }

    /// Our config of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// [`ModelFolderError::Config`] where a key is missing, or where the model does something ours does not.
    fn from_json(json: &Value, path: &Path) -> Result<Self, ModelFolderError>;

    /// The `config.json` of our config, for weights of type `dtype`.
    fn to_json(&self, dtype: HostDtype) -> Value;

    /// Names and shapes of all our parameters, from the embedding to the head; a tied head is none.
    fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)>;
}

/// All names that models of a family have in `architectures`, and the types of each.
pub fn architectures<C: HuggingFace>() -> impl Iterator<Item = (&'static str, &'static str)> {
    std::iter::once((C::ARCHITECTURE, C::MODEL_TYPE)).chain(C::OTHERS.iter().copied())
}

/// Reads the config of a Hugging Face folder.
///
/// # Errors
/// [`ModelFolderError`] where `config.json` describes a model of another family, or one that ours cannot be.
pub fn read_config<C: HuggingFace>(folder: &HfFolder) -> Result<C, ModelFolderError> {
    C::from_json(folder.config(), &folder.config_path())
}

/// Reads all parameters of a model of this `config`, in the order of [`HuggingFace::parameter_shapes`], one at a
/// time. A folder that holds anything else is refused first.
///
/// # Errors
/// [`ModelFolderError::Unexpected`] at once; others as the parameters are read.
pub fn read_parameters<'a, C: HuggingFace>(
    folder: &'a HfFolder,
    config: &C,
) -> Result<impl Iterator<Item = Result<HostTensor, ModelFolderError>> + use<'a, C>, ModelFolderError>
{
    let (shapes, names) = (config.parameter_shapes(), config.names());
    let stored = |(name, shape): &(String, Vec<usize>)| names.stored(folder, name, shape);
    let known: BTreeSet<String> = shapes.iter().filter_map(stored).flatten().collect();
    let beside = |name: &str| is_harmless(name) || C::is_beside(name, folder.config());
    let unknown = |name: &&str| !known.contains(*name) && !beside(name);
    if let Some(name) = folder.names().find(unknown) {
        let (folder, name) = (folder.path().to_path_buf(), name.to_string());
        return Err(ModelFolderError::Unexpected { folder, name, model: names.model });
    }
    Ok(shapes.into_iter().map(move |(name, shape)| names.read_parameter(folder, &name, &shape)))
}

/// Writes a Hugging Face folder of our `parameters`, which must be exactly those of
/// [`HuggingFace::parameter_shapes`], in any order, and are taken one at a time, with `extras`. Of experts, each has
/// tensors of its own, as in the folders that were published.
///
/// # Errors
/// [`ModelFolderError`] where a parameter is missing, unknown, of the wrong shape or without a place at Hugging Face,
/// or where the disk refuses. Nothing is left behind then.
pub fn write_folder<C: HuggingFace, E: From<ModelFolderError>>(
    path: &Path,
    config: &C,
    parameters: impl IntoIterator<Item = Result<HostTensor, E>>,
    extras: &HfExtras<'_>,
    max_shard_bytes: u64,
) -> Result<(), E> {
    let names = config.names();
    let mut missing: BTreeMap<_, _> = config.parameter_shapes().into_iter().collect();
    let mut writer: Option<HfWriter> = None;
    for parameter in parameters {
        let parameter = parameter?;
        let Some(expected) = missing.remove(parameter.name()) else {
            return Err(names.unknown(parameter.name()).into());
        };
        if parameter.shape() != expected {
            let (name, found) = (parameter.name().to_string(), parameter.shape().to_vec());
            let folder = path.to_path_buf();
            return Err(ModelFolderError::Shape { folder, name, found, expected }.into());
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let mut json = config.to_json(parameter.dtype());
                // `transformers` takes 1 and 2 where the keys are absent, but nothing for null.
                json["bos_token_id"] = extras.bos_token_id.into();
                json["eos_token_id"] = extras.eos_token_id.into();
                let created = HfWriter::create(path, &json, max_shard_bytes);
                writer.insert(created.map_err(ModelFolderError::from)?)
            }
        };
        for tensor in names.to_hf(parameter)? {
            writer.write(tensor?).map_err(ModelFolderError::from)?;
        }
    }
    let (Some(writer), None) = (writer, missing.keys().next()) else {
        let name = missing.keys().next().cloned().unwrap_or_default();
        return Err(ModelFolderError::MissingParameter { name, model: names.model }.into());
    };
    for (name, contents) in extras.files {
        writer.add_file(name, contents).map_err(ModelFolderError::from)?;
    }
    Ok(writer.finish().map_err(ModelFolderError::from)?)
}

/// Names and shapes of a model's parameters, for [`HuggingFace::parameter_shapes`].
pub fn parameter_shapes(model: &Model) -> Vec<(String, Vec<usize>)> {
    model.parameters().into_iter().map(|spec| (spec.name, spec.shape)).collect()
}

/// Tensors that older folders hold though the rest of the folder determines them: RoPE frequencies,
/// and the head of a tied model.
fn is_harmless(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight"
}
