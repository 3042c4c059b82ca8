//! Using a trained model: loading it, measuring its loss, continuing a prompt.

pub mod convert;
pub mod eval;
pub mod generate;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use crate::checkpoint::{self, Checkpoint, HostDtype, HostTensor, TensorError};
use crate::config::{Config, parse_resolved};
use crate::executor::{Executor, Groups, Layout, ParameterStore, Precision};
use crate::hf::HfFolder;
use crate::model::{HfWeights, Model, ModelFamily, ParameterSpec, Registry};
use crate::trainer::{TOKENIZER_FILE, TrainError, family};

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
    /// The tokenizer in the checkpoint (or where the run had it, if the checkpoint has none), or the `tokenizer.json` of the Hugging Face folder if it has one.
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
        let parameters = ParameterStore::read(Layout::flat(&model, 0, 1), &device, |spec, _| {
            let tensor = checkpoint.tensor_of(&spec.name, HostDtype::F32, &spec.shape)?;
            Ok::<_, TrainError>(tensor.to_f32()?)
        })?;
        let tokenizer = checkpoint_tokenizer(&checkpoint, &config)?;
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
        let parameters =
            hf_parameters(family, &model, &folder, Layout::flat(&model, 0, 1), &device)?;
        let tokenizer = tokenizer_of(path);
        Ok(Self { executor: executor(model, parameters, device), config: None, tokenizer })
    }
}

/// The `tokenizer.json` of a Hugging Face folder, if it has one.
fn tokenizer_of(folder: &Path) -> Option<PathBuf> {
    let path = folder.join(TOKENIZER_FILE);
    path.is_file().then_some(path)
}

/// The tokenizer of a checkpoint: its copy, or where the run had it.
fn checkpoint_tokenizer(
    checkpoint: &Checkpoint,
    config: &Config,
) -> Result<Option<PathBuf>, TrainError> {
    let copy = checkpoint.further_file_path(TOKENIZER_FILE)?;
    Ok(copy.or_else(|| config.data.tokenizer.clone()))
}

/// The tokenizer that the user gave, or else the model's own, which must be there.
fn chosen_tokenizer<'a>(
    given: Option<&'a Path>,
    own: Option<&'a Path>,
) -> Result<Option<&'a Path>, TrainError> {
    match (given, own) {
        (None, Some(own)) if !own.is_file() => Err(TrainError::File {
            path: own.display().to_string(),
            cause: "the model's tokenizer is not there: name its tokenizer.json by --tokenizer"
                .into(),
        }),
        _ => Ok(given.or(own)),
    }
}

fn executor(model: Model, parameters: ParameterStore, device: Device) -> Executor {
    Executor::new(model, parameters, device, Precision::F32, Groups::one())
}

/// The checkpoint at a path, the config of its run and its model's skeleton. What is read of it later is
/// verified then.
pub(crate) fn open_checkpoint(
    path: &Path,
    registry: &Registry,
) -> Result<(Checkpoint, Config, Model), TrainError> {
    let folder = checkpoint::locate(path)?;
    let checkpoint = checkpoint::open(&folder)?;
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

/// A rank's pieces of a model's parameters out of a Hugging Face folder.
pub(crate) fn hf_parameters(
    family: &dyn ModelFamily,
    model: &Model,
    folder: &HfFolder,
    layout: Layout,
    device: &Device,
) -> Result<ParameterStore, TrainError> {
    let names = layout.parameters().map(|local| &local.spec.name);
    let wanted = names.filter(|name| !layout.own_piece(name).is_empty()).cloned().collect();
    let mut weights = WeightReader::new(family, model, folder, wanted)?;
    ParameterStore::read(layout, device, |spec, region| {
        let values = weights.take(spec)?.to_f32()?;
        if region.is_whole(&spec.shape) {
            return Ok(values);
        }
        let part = region.of_values(&spec.shape, &values);
        let wrong = |source| TensorError::Region { name: spec.name.clone(), source };
        Ok(part.map_err(wrong)?)
    })
}

/// The weights of a Hugging Face folder, by name. They come in an order of the family's own; those that
/// come before they are asked for wait, so that a family with our order needs one at a time.
struct WeightReader<'a> {
    folder: &'a Path,
    weights: HfWeights<'a>,
    /// Those that will be asked for.
    wanted: HashSet<String>,
    waiting: HashMap<String, HostTensor>,
}

impl<'a> WeightReader<'a> {
    fn new(
        family: &dyn ModelFamily,
        model: &Model,
        folder: &'a HfFolder,
        wanted: HashSet<String>,
    ) -> Result<Self, TrainError> {
        let weights = family.weights_from_hf(&model.config, folder)?;
        Ok(Self { folder: folder.path(), weights, wanted, waiting: HashMap::new() })
    }

    fn take(&mut self, spec: &ParameterSpec) -> Result<HostTensor, TrainError> {
        let failed = |cause| TrainError::File { path: self.folder.display().to_string(), cause };
        let weight = loop {
            if let Some(weight) = self.waiting.remove(&spec.name) {
                break weight;
            }
            let Some(weight) = self.weights.next() else {
                return Err(failed(format!("the weights lack `{}`", spec.name)));
            };
            let weight = weight?;
            if !self.wanted.contains(weight.name()) {
                continue;
            }
            self.waiting.insert(weight.name().into(), weight);
        };
        if weight.shape() == spec.shape {
            return Ok(weight);
        }
        let (name, found, needed) = (&spec.name, weight.shape(), &spec.shape);
        Err(failed(format!("the weight `{name}` is {found:?}, but the model needs {needed:?}")))
    }
}
