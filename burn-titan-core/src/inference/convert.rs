//! Between checkpoints and Hugging Face folders.

use std::fs;
use std::path::Path;

use super::{DEFAULT_ATTENTION, DEFAULT_SEQ_LEN, build, open_checkpoint, recognise, tokenizer_of};
use crate::checkpoint::{self, CheckpointContent, DEFAULT_MAX_FILE_BYTES, HostDtype, HostTensor};
use crate::config::{Config, to_yaml};
use crate::hf::{HfError, HfFolder};
use crate::model::{ModelError, Registry};
use crate::trainer::{TrainError, TrainState, family};

/// Writes the newest checkpoint at `path` as a Hugging Face folder; the run's tokenizer goes with it
/// if it is still there.
///
/// # Errors
/// A checkpoint that is missing or altered; a target that exists; a disk that refuses.
pub fn to_hf(path: &Path, out: &Path, registry: &Registry) -> Result<(), TrainError> {
    let (checkpoint, config, model) = open_checkpoint(path, registry)?;
    let mut parameters = model.parameters().into_iter().map(|spec| {
        checkpoint.tensor_of(&spec.name, HostDtype::F32, &spec.shape).map_err(ModelError::new)
    });
    let tokenizer = config.data.tokenizer.as_ref().and_then(|path| fs::read(path).ok());
    let files: Vec<(&str, &[u8])> =
        tokenizer.iter().map(|bytes| ("tokenizer.json", bytes.as_slice())).collect();
    let family = family(registry, &config.model.name)?;
    Ok(family.write_hf(&model.config, out, &mut parameters, &files)?)
}

/// Writes a Hugging Face folder as a checkpoint of step 0 in the folder `out`, which must not exist or
/// be empty, with f32 weights and no optimizer state.
///
/// # Errors
/// A folder that is not of a registered family, or in which something is wrong; a target that exists; a
/// disk that refuses.
pub fn from_hf(path: &Path, out: &Path, registry: &Registry) -> Result<(), TrainError> {
    if fs::symlink_metadata(out).is_ok() && !is_empty_folder(out) {
        return Err(HfError::Exists { path: out.to_path_buf() }.into());
    }
    let folder = HfFolder::open(path)?;
    let family = recognise(&folder, registry)?;
    let model = build(family, &family.config_from_hf(&folder)?, DEFAULT_ATTENTION)?;
    let weights = family
        .weights_from_hf(&model.config, &folder)?
        .map(|weight| {
            let weight = weight?;
            let values = weight.to_f32()?;
            Ok(HostTensor::from_f32(weight.name(), weight.shape(), &values)?)
        })
        .collect::<Result<Vec<_>, TrainError>>()?;
    let mut config = Config::default();
    config.run.name = "converted".into();
    config.model.name = family.name().into();
    config.model.attention = DEFAULT_ATTENTION.into();
    config.model.overrides = model.config.as_object().cloned().unwrap_or_default();
    config.training.seq_len = model.max_seq_len.min(DEFAULT_SEQ_LEN);
    config.data.tokenizer = tokenizer_of(path);
    let state = TrainState { step: 0, updates: 0, cursor: None, model: model.config };
    let content = CheckpointContent {
        step: 0,
        model: &weights,
        optimizer: &[],
        state: &state.to_json()?,
        config_yaml: &to_yaml(&config),
        max_file_bytes: DEFAULT_MAX_FILE_BYTES,
    };
    checkpoint::save(out, 0, &content)?;
    Ok(())
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
