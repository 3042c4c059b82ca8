//! Using a trained model: loading it, measuring its loss, continuing a prompt.

pub mod convert;
pub mod eval;
pub mod generate;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use burn_titan_parallel::OneRank;

use crate::checkpoint::{self, Checkpoint, HostDtype};
use crate::config::{Config, parse_resolved};
use crate::executor::{Executor, ParameterStore};
use crate::hf::HfFolder;
use crate::model::{Model, ModelFamily, Registry};
use crate::trainer::{TrainError, family};

/// The attention module of models that are loaded from Hugging Face folders.
const DEFAULT_ATTENTION: &str = "fused";

/// Longest sequence that documents are packed into where no run says it, in tokens.
const DEFAULT_SEQ_LEN: usize = 2048;

/// A model with its weights on a device, computing in f32.
pub struct LoadedModel {
    /// Runs it.
    pub executor: Executor,
    /// The config of the run that trained it; `None` for a Hugging Face folder.
    pub config: Option<Config>,
    /// The tokenizer of the run, or the `tokenizer.json` of the Hugging Face folder if it has one.
    pub tokenizer: Option<PathBuf>,
}

impl LoadedModel {
    /// The model of a checkpoint; `path` is a step's folder, the folder of checkpoints, or a run's
    /// output folder, of which the newest step is taken.
    ///
    /// # Errors
    /// Where there is no complete checkpoint, or it was altered.
    pub fn from_checkpoint(
        path: &Path,
        registry: &Registry,
        device: Device,
    ) -> Result<Self, TrainError> {
        let (checkpoint, config, model) = open_checkpoint(path, registry)?;
        let parameters = ParameterStore::read(&model, &device, |spec| {
            checkpoint.tensor_of(&spec.name, HostDtype::F32, &spec.shape).map_err(TrainError::from)
        })?;
        let tokenizer = config.data.tokenizer.clone();
        Ok(Self { executor: executor(model, parameters, device), config: Some(config), tokenizer })
    }

    /// The model of a Hugging Face folder.
    ///
    /// # Errors
    /// Where the folder is not of a registered family, or something is wrong in it.
    pub fn from_hf(path: &Path, registry: &Registry, device: Device) -> Result<Self, TrainError> {
        let folder = HfFolder::open(path)?;
        let family = recognise(&folder, registry)?;
        let model = build(family, &family.config_from_hf(&folder)?, DEFAULT_ATTENTION)?;
        let parameters = hf_parameters(family, &model, &folder, &device)?;
        let tokenizer = tokenizer_of(path);
        Ok(Self { executor: executor(model, parameters, device), config: None, tokenizer })
    }
}

/// The `tokenizer.json` of a Hugging Face folder, if it has one.
fn tokenizer_of(folder: &Path) -> Option<PathBuf> {
    let path = folder.join("tokenizer.json");
    path.is_file().then_some(path)
}

fn executor(model: Model, parameters: ParameterStore, device: Device) -> Executor {
    Executor::new(model, parameters, device, DType::F32, Box::new(OneRank))
}

/// The checkpoint at a path, the config of its run and its model's skeleton. All files are verified.
pub(crate) fn open_checkpoint(
    path: &Path,
    registry: &Registry,
) -> Result<(Checkpoint, Config, Model), TrainError> {
    let folder = checkpoint::locate(path)?;
    let checkpoint = checkpoint::open(&folder)?;
    checkpoint.verify()?;
    let name = folder.join("config.yaml").display().to_string();
    let config = parse_resolved(&checkpoint.config_yaml()?)
        .map_err(|cause| TrainError::File { path: name, cause })?;
    let state: crate::trainer::TrainState = checkpoint.state()?;
    let family = family(registry, &config.model.name)?;
    let model = build(family, &state.model, &config.model.attention)?;
    Ok((checkpoint, config, model))
}

pub(crate) fn recognise<'a>(
    folder: &HfFolder,
    registry: &'a Registry,
) -> Result<&'a dyn ModelFamily, TrainError> {
    registry.recognise(folder.config()).ok_or_else(|| TrainError::File {
        path: folder.config_path().display().to_string(),
        cause: format!(
            "`architectures` is {} and `model_type` {}, which is no model of this binary: it has {}",
            folder.config()["architectures"],
            folder.config()["model_type"],
            registry.names().join(", ")
        ),
    })
}

pub(crate) fn build(
    family: &dyn ModelFamily,
    sizes: &serde_json::Value,
    attention: &str,
) -> Result<Model, TrainError> {
    family.build(sizes, attention).map_err(|problems| {
        let list: Vec<String> =
            problems.into_iter().map(|p| format!("{}: {}", p.key, p.message)).collect();
        crate::model::ModelError::new(list.join("; ")).into()
    })
}

/// A model's parameters out of a Hugging Face folder.
pub(crate) fn hf_parameters(
    family: &dyn ModelFamily,
    model: &Model,
    folder: &HfFolder,
    device: &Device,
) -> Result<ParameterStore, TrainError> {
    let mut weights = std::collections::HashMap::new();
    for weight in family.weights_from_hf(&model.config, folder)? {
        let weight = weight?;
        weights.insert(weight.name().to_string(), weight);
    }
    ParameterStore::read(model, device, |spec| {
        weights.remove(&spec.name).ok_or_else(|| TrainError::File {
            path: folder.path().display().to_string(),
            cause: format!("the weights lack `{}`", spec.name),
        })
    })
}
