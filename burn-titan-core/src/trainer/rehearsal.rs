//! The first step of a run where kernels are tuned: one rank of each host goes through it alone before all do, so that
//! the others find what it has compiled and tuned.

use std::time::Duration;

use burn::tensor::Device;
use burn_titan_parallel::{CommError, Communicator, Mesh, Program, World};

use crate::config::Config;
use crate::data::Batch;
use crate::executor::{Executor, Groups, ModelSplit};

/// How long ranks wait for the one that tunes.
const TUNING_TIMEOUT: Duration = Duration::from_secs(3600);

/// A step that one rank of each host goes through alone.
pub(super) struct Rehearsal {
    /// Of the rank that goes through it.
    groups: Option<Groups>,
    /// All ranks.
    all: Box<dyn Communicator>,
}

impl Rehearsal {
    /// `None` where that is of no use and not asked for: where nothing is tuned, or ranks would not find what another has
    /// tuned, since their devices have other numbers.
    ///
    /// # Errors
    /// If an exchange fails.
    pub(super) fn new(
        config: &Config,
        world: &World,
        mesh: &Mesh,
        split: &ModelSplit,
        groups: &Groups,
        device: &Device,
    ) -> Result<Option<Self>, CommError> {
        if world.size() == 1 {
            return Ok(None);
        }
        let number = burn_titan_kernels::device::tuned_as(device);
        let shared = groups.largest(number.map_or(-1, |it| it as i32), device)? == 0;
        if !shared && !config.debug.rehearse {
            return Ok(None);
        }
        let ranks: Vec<usize> = (0..world.size()).collect();
        let all = world.with_timeout(TUNING_TIMEOUT).communicator("rehearsal", &ranks)?;
        let goes = world.leads_host();
        let groups = goes.then(|| Groups::new(&world.rehearsal(), mesh, split)).transpose()?;
        Ok(Some(Self { groups, all }))
    }

    /// Goes through the step, or waits until the others have.
    ///
    /// # Errors
    /// If a rank does not come back from it.
    pub(super) fn run(
        self,
        executor: &Executor,
        program: &Program,
        batches: &[Batch],
    ) -> Result<(), CommError> {
        if let Some(groups) = &self.groups {
            executor.rehearse(program, batches, groups)?;
        }
        self.all.barrier().wait()
    }
}
