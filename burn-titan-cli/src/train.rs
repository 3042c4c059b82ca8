//! `train` and `validate`.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use burn_titan_core::model::Registry;
use burn_titan_core::plan;
use burn_titan_core::trainer::{self, Prepared, TrainError, TrainSummary, prepare};
use burn_titan_parallel::World;
use burn_titan_parallel::launch::{self, Family, Flags, Launch, Place, Variables};

use crate::arguments::{ConfigArguments, RankArguments};
use crate::{output, rank, ranks, stop, threads};

/// Trains as one rank, as all of them, or by starting them, as the command line and the environment say.
pub fn train(
    registry: &Arc<Registry>,
    config: ConfigArguments,
    arguments: &RankArguments,
) -> Result<(), TrainError> {
    if let Some(ranks) = arguments.simulate {
        stop::on_signals()?;
        return simulate(registry, config, ranks);
    }
    match launch::read(&arguments.flags(), &Variables::of_process())? {
        Place::Host(host) => {
            // Said once here, and not by every rank.
            prepared(registry, &config, Some(host.world_size))?;
            eprintln!("{host}");
            ranks::run(&host)
        }
        Place::Rank(launch) => {
            if launch.source.family != Family::Alone {
                eprintln!("{launch}");
            }
            train_rank(registry, &config, &launch)
        }
    }
}

fn prepared(
    registry: &Registry,
    arguments: &ConfigArguments,
    ranks: Option<usize>,
) -> Result<Prepared, TrainError> {
    Ok(prepare(&arguments.config, &arguments.overrides, registry, ranks)?)
}

/// Trains as one of the ranks, which are processes.
fn train_rank(
    registry: &Registry,
    config: &ConfigArguments,
    launch: &Launch,
) -> Result<(), TrainError> {
    stop::on_signals()?;
    let prepared = prepared(registry, config, Some(launch.world_size))?;
    let world = trainer::join(&prepared.config, launch)?;
    let summary = rank::run(world, |world| trainer::train(prepared, registry, world))?;
    if launch.rank == 0 { report(&summary) } else { Ok(()) }
}

/// Trains as all ranks, each on a thread.
fn simulate(
    registry: &Arc<Registry>,
    config: ConfigArguments,
    ranks: usize,
) -> Result<(), TrainError> {
    // A variable that makes no sense by itself does not matter here.
    if let Ok(Place::Rank(launch)) = launch::read(&Flags::default(), &Variables::of_process())
        && launch.world_size > 1
    {
        return Err(refused(format!("this process is one of several ranks already: {launch}")));
    }
    let Prepared { config: checked, .. } = prepared(registry, &config, Some(ranks))?;
    if checked.debug.link_mbit_per_second.is_some() {
        let cause = "debug.link_mbit_per_second limits ranks that are processes: say --ranks";
        return Err(refused(cause.into()));
    }
    let timeout = Duration::from_secs(checked.comm.timeout_seconds);
    let registry = registry.clone();
    let summary = threads::run(World::local(ranks, timeout), move |world| {
        trainer::train(prepared(&registry, &config, Some(ranks))?, &registry, world)
    })?;
    report(&summary)
}

fn refused(cause: String) -> TrainError {
    TrainError::File { path: "--simulate".into(), cause }
}

fn report(summary: &TrainSummary) -> Result<(), TrainError> {
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

/// Checks a config, for `ranks` ranks or for any number that it can run on.
pub fn validate(
    registry: &Registry,
    arguments: &ConfigArguments,
    ranks: Option<usize>,
) -> Result<(), TrainError> {
    let prepared = prepared(registry, arguments, ranks)?;
    let Prepared { config, model } = &prepared;
    plan::check(&prepared, ranks.unwrap_or_else(|| plan::fewest_ranks(config)))?;
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
