//! Between checkpoints and Hugging Face folders.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use super::{
    DEFAULT_ATTENTION, DEFAULT_SEQ_LEN, WeightReader, build, checkpoint_tokenizer,
    chosen_tokenizer, open_checkpoint, recognise, tokenizer_of,
};
use crate::checkpoint::{self, CheckpointContent, DeferredTensor, HostDtype, HostTensor, Layout};
use crate::config::{Config, DataConfig, to_yaml};
use crate::data::{Tokenizer, TokenizerError};
use crate::hf::{HfError, HfFolder};
use crate::model::{HfExtras, ModelError, Registry};
use crate::trainer::{TOKENIZER_FILE, TrainError, TrainState, family};

/// Writes the newest checkpoint at `path` as a Hugging Face folder, with its tokenizer, or the one that
/// is given.
///
/// # Errors
/// A checkpoint that is missing or altered; a tokenizer that is gone; a target that exists; a disk that
/// refuses.
pub fn to_hf(
    path: &Path,
    out: &Path,
    tokenizer: Option<&Path>,
    registry: &Registry,
) -> Result<(), TrainError> {
    let (checkpoint, config, model) = open_checkpoint(path, registry)?;
    let mut parameters = model.parameters().into_iter().map(|spec| {
        checkpoint.tensor_of(&spec.name, HostDtype::F32, &spec.shape).map_err(ModelError::new)
    });
    let own = checkpoint_tokenizer(&checkpoint, &config)?;
    let tokenizer = chosen_tokenizer(tokenizer, own.as_deref())?;
    let [bos_token_id, eos_token_id] = special_tokens(tokenizer, &config.data)?;
    let tokenizer = tokenizer.map(contents).transpose()?;
    let files: Vec<(&str, &[u8])> =
        tokenizer.iter().map(|bytes| (TOKENIZER_FILE, bytes.as_slice())).collect();
    let extras = HfExtras { bos_token_id, eos_token_id, files: &files };
    let family = family(registry, &config.model.name)?;
    Ok(family.write_hf(&model.config, out, &mut parameters, &extras)?)
}

/// The ids of the tokens that begin and end a document.
fn special_tokens(
    tokenizer: Option<&Path>,
    data: &DataConfig,
) -> Result<[Option<u32>; 2], TrainError> {
    let texts = [&data.bos_token, &data.eos_token];
    let (Some(path), true) = (tokenizer, texts.iter().any(|text| text.is_some())) else {
        return Ok([None; 2]);
    };
    let tokenizer = Tokenizer::from_file(path)?;
    let id = |text: &Option<String>| text.as_ref().map(|t| tokenizer.token_id(t)).transpose();
    Ok([id(texts[0])?, id(texts[1])?])
}

/// Writes a Hugging Face folder as a checkpoint of step 0 in the folder `out`, which must not exist or
/// be empty, with f32 weights, no optimizer state, and the `tokenizer.json` of the folder if it has one.
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
    let tokenizer = tokenizer_of(path).map(|path| contents(&path)).transpose()?;
    let files: Vec<(&str, &[u8])> =
        tokenizer.iter().map(|bytes| (TOKENIZER_FILE, bytes.as_slice())).collect();
    let mut config = Config::default();
    config.run.name = "converted".into();
    config.model.name = family.name().into();
    config.model.attention = DEFAULT_ATTENTION.into();
    config.model.overrides = model.config.as_object().cloned().unwrap_or_default();
    config.training.seq_len = model.max_seq_len.min(DEFAULT_SEQ_LEN);
    let state = TrainState { step: 0, updates: 0, cursor: None, model: model.config.clone() };
    let wanted = model.parameters().into_iter().map(|spec| spec.name).collect();
    let reader = RefCell::new(WeightReader::new(family, &model, &folder, wanted)?);
    let weights = model.parameters().into_iter().map(|spec| {
        let reader = &reader;
        DeferredTensor::new(spec.name.clone(), HostDtype::F32, &spec.shape.clone(), move || {
            let weight = reader.borrow_mut().take(&spec)?;
            Ok(HostTensor::from_f32(spec.name, &spec.shape, &weight.to_f32()?)?)
        })
    });
    let content = CheckpointContent::<TrainError> {
        step: 0,
        model: weights.collect::<Result<_, _>>()?,
        optimizer: Some(vec![]),
        state: &state.to_json()?,
        config_yaml: &to_yaml(&config),
        further_files: &files,
        layout: Layout::default(),
    };
    checkpoint::save(out, 0, content).map(drop).inspect_err(|_| {
        // What a failed save leaves is its lock, which would be in the way of the next attempt.
        let _ = fs::remove_file(out.join(checkpoint::LOCK_FILE));
        let _ = fs::remove_dir(out);
    })
}

fn contents(path: &Path) -> Result<Vec<u8>, TrainError> {
    let read = fs::read(path);
    Ok(read.map_err(|source| TokenizerError::Read { path: path.to_path_buf(), source })?)
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
