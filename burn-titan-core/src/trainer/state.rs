//! What a checkpoint of a run holds, and how it goes in and out.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TrainError;
use crate::checkpoint::{
    self, Checkpoint, CheckpointContent, CheckpointError, DeferredTensor, Region, Saver,
};
use crate::config::{Config, parse_resolved, to_yaml};
use crate::data::{Cursor, TokenizerError};
use crate::executor::{Executor, Groups, Layout, Parameter, ParameterStore, on_host};
use crate::model::{Model, ParameterSpec};
use crate::optim::Optimizer;

/// The copy of the run's tokenizer in a checkpoint.
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";

/// Where a run stands, beside its tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TrainState {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Updates of the optimizer: the steps without those that were skipped.
    pub(crate) updates: u64,
    /// Where the data continues; `None` for the start.
    pub(crate) cursor: Option<Cursor>,
    /// Sizes of the model.
    pub(crate) model: Value,
}

impl TrainState {
    /// As it is stored.
    pub(crate) fn to_json(&self) -> Result<Value, TrainError> {
        serde_json::to_value(self)
            .map_err(|e| TrainError::File { path: "state.json".into(), cause: e.to_string() })
    }
}

/// The contents of the run's tokenizer, which every checkpoint of it gets a copy of.
pub(super) fn tokenizer_of(config: &Config) -> Result<Option<Vec<u8>>, TrainError> {
    let Some(path) = &config.data.tokenizer else { return Ok(None) };
    let read = fs::read(path);
    let read = read.map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
    Ok(Some(read))
}

/// Saves the run; the model alone where it has come to its end and the config says so.
pub(super) fn save(
    saver: &mut Saver,
    config: &Config,
    executor: &Executor,
    optimizer: &Optimizer,
    state: &TrainState,
    tokenizer: Option<&[u8]>,
) -> Result<(), TrainError> {
    // Of the ranks that hold the same, the first writes.
    let writes = executor.groups().replicate.rank() == 0;
    let sharding = executor.parameters.layout().sharding();
    let piece = |p: &Parameter| {
        let (spec, value, region) = (&p.local.spec, p.value(), p.region()?);
        DeferredTensor::f32_region(&spec.name, &spec.shape, region, move || on_host(value))
    };
    let model: Result<Vec<DeferredTensor>, _> = executor
        .parameters
        .iter()
        .filter(|p| writes && p.local.counts(sharding))
        .map(piece)
        .collect();
    let is_last = state.step == config.training.steps as u64;
    let optimizer = match is_last && config.checkpoint.last_save_model_only {
        true => None,
        false if writes => Some(optimizer.deferred(executor.parameters.layout())?),
        false => Some(vec![]),
    };
    let files: Vec<(&str, &[u8])> =
        tokenizer.iter().map(|contents| (TOKENIZER_FILE, *contents)).collect();
    let content = CheckpointContent {
        step: state.step,
        model: model?,
        optimizer,
        state: &state.to_json()?,
        config_yaml: &to_yaml(config),
        further_files: &files,
        layout: checkpoint::Layout::default(),
    };
    saver.save(content).map_err(TrainError::Save)
}

/// A run as a checkpoint left it, but for the optimizer's state.
pub(super) struct Resumed {
    pub(super) folder: PathBuf,
    pub(super) parameters: ParameterStore,
    pub(super) state: TrainState,
    /// The config of that run; `None` if it is of another version.
    config: Option<Config>,
    checkpoint: Checkpoint,
}

impl Resumed {
    /// Whether the run is at its end already.
    ///
    /// # Errors
    /// Where it is past the end that `config` asks for, or before it, but cannot be continued.
    pub(super) fn is_complete(&self, config: &Config) -> Result<bool, TrainError> {
        let (step, steps) = (self.state.step, config.training.steps as u64);
        if step > steps {
            let checkpoint = self.folder.display().to_string();
            return Err(TrainError::PastEnd { checkpoint, step, steps });
        }
        if step < steps {
            self.checkpoint.require_resumable()?;
        }
        Ok(step == steps)
    }

    /// What is said where the learning rate will not follow the schedule it began with.
    pub(super) fn schedule_change(&self, now: &Config) -> Option<String> {
        let saved = self.config.as_ref()?;
        let what = if saved.training.steps != now.training.steps {
            format!(
                "training.steps was {} when the checkpoint was written and is {} now",
                saved.training.steps, now.training.steps
            )
        } else if saved.lr_scheduler != now.lr_scheduler {
            "the section lr_scheduler has changed since the checkpoint was written".into()
        } else {
            return None;
        };
        Some(format!("{what}: the learning rate follows the new schedule from here on"))
    }
}

/// What makes the model another one than the checkpoint's: a field of its sizes, with its value there and here. A
/// field of how it is trained may differ, unless the model has other parameters for it.
fn difference(
    checkpoint: &Checkpoint,
    state: &TrainState,
    model: &Model,
) -> Option<(String, String, String)> {
    let size = model.first_difference(&state.model);
    size.or_else(|| {
        let saved: BTreeSet<&str> = checkpoint.model_tensors().map(|entry| entry.name).collect();
        let parameters = model.parameters();
        let here: BTreeSet<&str> = parameters.iter().map(|spec| spec.name.as_str()).collect();
        (saved != here).then(|| model.differing_field(&state.model, |_| true)).flatten()
    })
}

pub(super) fn load(
    folder: &Path,
    model: &Model,
    optimizer: &mut Optimizer,
    groups: &Groups,
    device: &Device,
) -> Result<Resumed, TrainError> {
    let checkpoint = checkpoint::open(folder)?;
    checkpoint.verify_share(groups.world.rank(), groups.world.size())?;
    let state: TrainState = checkpoint.state()?;
    if let Some((field, saved, wanted)) = difference(&checkpoint, &state, model) {
        let checkpoint = folder.display().to_string();
        return Err(TrainError::OtherModel { checkpoint, field, saved, wanted });
    }
    let owned = groups.owned(model.units.len());
    let layout = Layout::new(model, groups.sharding(), &owned)?;
    let parameters = ParameterStore::read(layout, device, |spec, region| {
        Ok::<_, TrainError>(checkpoint.region_f32(&spec.name, &spec.shape, region)?)
    })?;
    let saved: HashSet<&str> = checkpoint.optimizer_tensors().map(|entry| entry.name).collect();
    let has = |name: &str| saved.contains(name);
    let read = |name: &str, spec: &ParameterSpec, region: &Region| {
        let values = checkpoint.region_f32(name, &spec.shape, region);
        values.map_err(|error| match error {
            CheckpointError::MissingTensor { path, name, .. } => {
                TrainError::OtherOptimizer { checkpoint: path.display().to_string(), state: name }
            }
            other => other.into(),
        })
    };
    optimizer.restore(state.updates, parameters.layout(), device, has, read)?;
    let config = parse_resolved(&checkpoint.config_yaml()?).ok();
    Ok(Resumed { folder: folder.to_path_buf(), parameters, state, config, checkpoint })
}
