//! `generate`.

use std::path::Path;

use burn::tensor::Device;
use burn_titan_core::config::{ComputeDtype, DeviceKind};
use burn_titan_core::inference::LoadedModel;
use burn_titan_core::inference::generate::{GenerateOptions, generate as run};
use burn_titan_core::model::Registry;
use burn_titan_core::sampling::Sampler;
use burn_titan_core::trainer::{TrainError, open_device};

use crate::arguments::{GenerateArguments, ModelSource};
use crate::output;

pub fn generate(registry: &Registry, arguments: &GenerateArguments) -> Result<(), TrainError> {
    let sampler = Sampler::new(
        arguments.temperature,
        arguments.top_k.unwrap_or(0),
        arguments.top_p,
        arguments.seed,
    )?;
    let model = load(registry, &arguments.model, &arguments.device)?;
    let options = GenerateOptions {
        prompt: &arguments.prompt,
        max_tokens: arguments.max_tokens,
        tokenizer: arguments.tokenizer.as_deref(),
    };
    run(&model, &options, sampler, output::write)?;
    output::line("")
}

/// The model of a command, on its device.
pub fn load(
    registry: &Registry,
    source: &ModelSource,
    device: &str,
) -> Result<LoadedModel, TrainError> {
    let device = open_named_device(device)?;
    let missing = Path::new("");
    match (&source.checkpoint, &source.hf) {
        (Some(checkpoint), _) => LoadedModel::from_checkpoint(checkpoint, registry, device),
        (None, hf) => LoadedModel::from_hf(hf.as_deref().unwrap_or(missing), registry, device),
    }
}

/// Opens the device that an option `--device` names.
pub fn open_named_device(device: &str) -> Result<Device, TrainError> {
    let kind: DeviceKind = serde_json::from_value(device.into()).map_err(|_| TrainError::File {
        path: "--device".into(),
        cause: format!("expected flex, wgpu or cuda, found `{device}`"),
    })?;
    open_device(kind, ComputeDtype::Float32).map_err(|error| match error {
        TrainError::Device(error) => {
            TrainError::File { path: format!("--device {device}"), cause: error.to_string() }
        }
        other => other,
    })
}
