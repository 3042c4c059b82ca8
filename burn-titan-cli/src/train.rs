//! `train` and `validate`.

use std::io::IsTerminal;

use burn_titan_core::model::Registry;
use burn_titan_core::trainer::{self, Prepared, TrainError, prepare};
use burn_titan_parallel::World;

use crate::arguments::ConfigArguments;
use crate::output;

pub fn train(registry: &Registry, arguments: &ConfigArguments) -> Result<(), TrainError> {
    let prepared = prepare(&arguments.config, &arguments.overrides, registry)?;
    let summary = trainer::train(prepared, registry, World::alone())?;
    if summary.loss.is_none() {
        return output::line(&format!(
            "the run is complete: {steps} of {steps} steps were done before; raise training.steps to \
             go on, or see {folder}",
            steps = summary.steps,
            folder = summary.output_dir.display()
        ));
    }
    let loss = |loss: Option<f64>| loss.map_or("none".to_string(), |loss| format!("{loss:.4}"));
    output::line(&format!(
        "{} steps; loss {}, validation loss {}; see {}",
        summary.steps,
        loss(summary.loss),
        loss(summary.validation_loss),
        summary.output_dir.display()
    ))
}

pub fn validate(registry: &Registry, arguments: &ConfigArguments) -> Result<(), TrainError> {
    let Prepared { config, model } = prepare(&arguments.config, &arguments.overrides, registry)?;
    output::line(&format!(
        "{}: sound; {} {} with {} parameters, {} optimizer steps",
        arguments.config.display(),
        config.model.name,
        config.model.flavor,
        model.parameter_count(),
        config.training.steps
    ))
}

/// An error as the terminal shows it.
pub fn rendered(error: &TrainError) -> String {
    match error {
        TrainError::Config(errors) => errors.render(std::io::stderr().is_terminal()),
        other => format!("error: {other}"),
    }
}
