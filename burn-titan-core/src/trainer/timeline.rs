//! `timeline.svg`: what the ranks of a pipeline really did in one step.

use std::fs;

use burn_titan_parallel::pipeline::{TimeLine, draw};
use burn_titan_parallel::step::{Pipeline, ideal, time_line};
use burn_titan_parallel::trace::Span;
use burn_titan_parallel::{Axis, Mesh, Program};

use super::{TrainError, folder, output_dir};
use crate::config::Config;
use crate::executor::{Executor, TRAINING};

/// The step that is drawn, counted from the one that the run begins with: in the first, memory and kernels are made.
const DRAWN: u64 = 2;

/// What is needed to draw a step.
pub(super) struct Timeline {
    /// The step.
    step: u64,
    pipeline: Pipeline,
    /// What the ranks along `pp` do.
    programs: Vec<Program>,
    /// These ranks, on the line of the first.
    ranks: Vec<usize>,
}

impl Timeline {
    /// Of a run that has done `done` steps and ends with `total`; `programs` are those of the ranks along `pp`.
    pub(super) fn new(
        mesh: &Mesh,
        pipeline: Pipeline,
        programs: Vec<Program>,
        done: u64,
        total: u64,
    ) -> Self {
        let stage = |rank| mesh.coordinate(rank, Axis::Pipeline);
        let mut all = 0..mesh.world_size();
        let ranks =
            (0..programs.len()).filter_map(|wanted| all.find(|rank| stage(*rank) == wanted));
        Self { step: (done + DRAWN).min(total), pipeline, ranks: ranks.collect(), programs }
    }

    /// Whether this step is drawn.
    pub(super) fn draws(&self, step: u64) -> bool {
        self.step == step
    }

    /// Draws the step out of what every rank did in it; the first rank writes the picture.
    pub(super) fn write(
        self,
        config: &Config,
        executor: &Executor,
        spans: &[Span],
    ) -> Result<(), TrainError> {
        let groups = executor.groups();
        let most = self.programs.iter().map(|program| program.actions.len()).max().unwrap_or(0);
        let mut times: Vec<f32> = spans
            .iter()
            .filter(|span| span.lane == TRAINING)
            .flat_map(|span| [span.start, span.start + span.duration])
            .map(|time| time.as_secs_f32())
            .collect();
        // Marked where there are none.
        times.resize(2 * most, -1.0);
        let all = groups.all(&times, executor.device())?;
        if groups.world.rank() > 0 {
            return Ok(());
        }
        let of_rank = |(rank, program): (&usize, Program)| {
            let times = all[2 * most * rank..].chunks_exact(2).take(most);
            let times = times.map(|pair| [f64::from(pair[0]), f64::from(pair[1])]);
            (program, times.take_while(|pair| pair[0] >= 0.0).collect())
        };
        let ranks: Vec<_> = self.ranks.iter().zip(self.programs).map(of_rank).collect();
        let measured = time_line(&self.pipeline, &ranks);
        let ideal = ideal(&self.pipeline, &measured)?;
        let path = output_dir(config).join("timeline.svg");
        fs::write(&path, picture(config, self.step, &measured, &ideal))
            .map_err(|error| folder::unwritable(&path, &error))
    }
}

fn picture(config: &Config, step: u64, measured: &TimeLine, ideal: &TimeLine) -> String {
    let schedule = config.parallelism.pipeline_parallel_schedule.name();
    let titles = [
        format!("{schedule}, step {step} as it was, in seconds"),
        format!("{schedule} with these steps if messages took no time"),
    ];
    draw::svg(&[(&titles[0], measured), (&titles[1], ideal)])
}
