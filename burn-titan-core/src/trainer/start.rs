//! How a run starts: everything that is there before its first step.

use std::time::Duration;

use burn_titan_parallel::check::check_all;
use burn_titan_parallel::context_parallel::Method;
use burn_titan_parallel::step::{Pipeline, Strategy};
use burn_titan_parallel::{Axis, CommError, Mesh, Program, World};

use super::pipeline::pipeline;
use super::rehearsal::Rehearsal;
use super::report::Report;
use super::timeline::Timeline;
use super::{
    Prepared, TrainError, Trainer, checkpoint_dir, compute_dtype, fits, folder,
    open_device_of_rank, prepare, state,
};
use crate::checkpoint::{OneWriter, Saver, Writers};
use crate::config::{
    ActivationCheckpointMode, CommBackend, Config, ContextParallelMethod, ReduceDtype,
    ReshardAfterForward,
};
use crate::data::{Loader, LoaderOptions, StreamOptions};
use crate::executor::{Executor, Groups, Layout, ModelSplit, ParameterStore, Precision};
use crate::hf::HfFolder;
use crate::model::{ExpertRank, Model, PlanError, Registry, TensorRank};
use crate::optim::{Optimizer, parameter_rules};
use crate::plan;
use crate::writers::RankWriters;

/// A rank among those that read different samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataRank {
    pub(super) rank: usize,
    pub(super) ranks: usize,
}

impl DataRank {
    fn of(world: &World, mesh: &Mesh) -> Self {
        Self { rank: mesh.data_rank(world.rank()), ranks: mesh.data_parallel() }
    }
}

impl Trainer {
    /// `None` where all steps are done already.
    pub(super) fn new(
        prepared: Prepared,
        registry: &Registry,
        world: &World,
    ) -> Result<Option<Self>, TrainError> {
        let Prepared { config, model } = prepared;
        let (device, notice) = open_device_of_rank(
            config.training.device,
            config.precision.compute,
            world.local_rank(),
        )?;
        if let Some(notice) = notice {
            eprintln!("{notice}");
        }
        // Where the parameters, their gradients and the optimizer's state rest.
        let home = match config.training.enable_cpu_offload {
            true => burn_titan_kernels::device::flex(),
            false => device.clone(),
        };
        let mesh = Mesh::new(config.parallelism.degrees(), world.size())?;
        let pipeline = pipeline(&config, &model, &mesh)?;
        let split = model_split(&config, &model, &mesh, world.rank(), pipeline.as_ref())?;
        let groups = match config.comm.backend {
            CommBackend::Nccl => Groups::new(&world.with_nccl(&device)?, &mesh, &split)?,
            _ => Groups::new(world, &mesh, &split)?,
        };
        let rehearsal = Rehearsal::new(&config, world, &mesh, &split, &groups, &device)?;
        let data = DataRank::of(world, &mesh);
        let sharding = groups.sharding();
        let specs = model.parameters();
        let rules = parameter_rules(&config.optimizer, &specs)?;
        fits::check(
            config.training.device,
            &specs,
            &rules,
            sharding.ranks * sharding.tensor.ranks * mesh.degree(Axis::Pipeline),
        )?;
        let (lock, resume) = folder::enter_together(&config, &groups, &device)?;
        let stream = StreamOptions::training(
            &config.data,
            model.vocab_size,
            config.training.seq_len,
            config.training.seed,
        )?;
        let tokenizer = state::tokenizer_of(&config)?;
        let mut optimizer = Optimizer::new(&config.optimizer, &specs)?;
        let resumed = match &resume {
            Some(folder) => Some(state::load(folder, &model, &mut optimizer, &groups, &home)?),
            None => None,
        };
        if let Some(resumed) = &resumed
            && resumed.is_complete(&config)?
        {
            return Ok(None);
        }
        let schedule_change = resumed.as_ref().and_then(|run| run.schedule_change(&config));
        let (parameters, state) = match resumed {
            Some(resumed) => (resumed.parameters, Some(resumed.state)),
            None => {
                let layout = Layout::new(&model, sharding, &groups.owned(model.units.len()))?;
                let parameters = match &config.model.initial_hf {
                    None => {
                        let seed = config.training.seed;
                        ParameterStore::initial(&model, seed, layout, &home)?
                    }
                    Some(path) => {
                        let folder = HfFolder::open(path)?;
                        let family = prepare::family(registry, &config.model.name)?;
                        crate::inference::hf_parameters(family, &model, &folder, layout, &home)?
                    }
                };
                (parameters, None)
            }
        };
        let step = state.as_ref().map_or(0, |state| state.step);
        let cursor = state.and_then(|state| state.cursor);
        let classes = plan::classes(&config, &model, &mesh, pipeline.as_ref())?;
        let stage = |rank| mesh.coordinate(rank, Axis::Pipeline);
        check_all(&mesh, &classes, stage)?;
        let programs: Vec<Program> = classes.into_iter().map(|class| class.program).collect();
        let program = programs[stage(world.rank())].clone();
        let total = config.training.steps as u64;
        let timeline = pipeline.map(|it| Timeline::new(&mesh, it, programs, step, total));
        let loader = Loader::spawn(LoaderOptions {
            stream: stream.clone(),
            local_batch_size: config.training.local_batch_size,
            rank: data.rank,
            world: data.ranks,
            prefetch_batches: config.data.prefetch_batches,
            cursor: cursor.clone(),
        })?;
        let report = Report::open(&config, &model, step, resume.as_deref(), &groups)?;
        if let Some(change) = schedule_change {
            report.message(&change);
        }
        let saver = Saver::new(
            checkpoint_dir(&config),
            config.checkpoint.keep_latest_k,
            config.checkpoint.async_mode,
            writers(world)?,
        );
        let precision = precision(&config);
        let executor = Executor::new(model, parameters, device, precision, groups);
        Ok(Some(Self {
            config,
            executor,
            rehearsal,
            optimizer,
            program,
            stream,
            data,
            tokenizer,
            loader,
            cursor,
            report,
            saver,
            timeline,
            step,
            saved_step: resume.is_some().then_some(step),
            newest: resume,
            _lock: lock,
        }))
    }
}

/// How the ranks of `tp` and `cp` split the model.
fn model_split(
    config: &Config,
    model: &Model,
    mesh: &Mesh,
    rank: usize,
    pipeline: Option<&Pipeline>,
) -> Result<ModelSplit, PlanError> {
    let parallelism = &config.parallelism;
    let tensor = tensor_rank(config, mesh, rank);
    let mut holders: Vec<_> = model
        .cuts(tensor, ExpertRank::of(mesh, rank))?
        .into_iter()
        .map(|cut| cut.holders)
        .collect();
    holders.sort_by_key(|places| (places.start, places.end));
    holders.dedup();
    Ok(ModelSplit {
        holders,
        sequence: tensor.sequence,
        loss: parallelism.enable_loss_parallel,
        vocabulary: model.vocab_size,
        chunks: parallelism.async_tensor_parallel_chunks,
        context: context_method(config),
        stages: pipeline.map_or(vec![], |pipeline| {
            (0..model.units.len()).map(|unit| pipeline.owner(unit)).collect()
        }),
        tied: pipeline.and_then(Pipeline::tied_ranks),
    })
}

pub(crate) fn context_method(config: &Config) -> Method {
    match config.parallelism.context_parallel_method {
        ContextParallelMethod::Ring => Method::Ring,
        ContextParallelMethod::AllGather => Method::AllGather,
    }
}

/// A rank of the mesh among those that split matrix products.
pub(crate) fn tensor_rank(config: &Config, mesh: &Mesh, rank: usize) -> TensorRank {
    let ranks = mesh.degree(Axis::Tensor);
    let sequence = config.parallelism.enable_sequence_parallel && ranks > 1;
    TensorRank { rank: mesh.coordinate(rank, Axis::Tensor), ranks, sequence }
}

/// How long a rank waits for the others to write their parts of a checkpoint. A rank that is dead is noticed
/// earlier, by other means.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3600);

/// All ranks, as the writers of checkpoints.
fn writers(world: &World) -> Result<Box<dyn Writers>, CommError> {
    if world.size() == 1 {
        return Ok(Box::new(OneWriter));
    }
    let all: Vec<usize> = (0..world.size()).collect();
    let patient = world.with_timeout(SAVE_TIMEOUT);
    Ok(Box::new(RankWriters::new(patient.communicator("checkpoint", &all)?)))
}

fn precision(config: &Config) -> Precision {
    let reduce = match config.precision.reduce {
        ReduceDtype::Float32 => burn::tensor::DType::F32,
        ReduceDtype::Bfloat16 => burn::tensor::DType::BF16,
    };
    let compute = compute_dtype(config.precision.compute);
    Precision { compute, reduce, quantize: config.comm.quantize }
}

/// How a step of this config is spread over the ranks of a mesh.
pub(crate) fn strategy(config: &Config, model: &Model, mesh: &Mesh) -> Strategy {
    let recompute = config.activation_checkpoint.mode == ActivationCheckpointMode::Full;
    let sharded = mesh.degree(Axis::DataShard) * mesh.degree(Axis::Context) > 1;
    let reshard_after_forward = match config.parallelism.fsdp_reshard_after_forward {
        ReshardAfterForward::Default => recompute && sharded,
        ReshardAfterForward::Always => true,
        ReshardAfterForward::Never => false,
    };
    Strategy {
        micro_batches: micro_batches(config, mesh),
        recompute,
        reshard_after_forward,
        reduce_every_micro_batch: config.parallelism.reduce_every_micro_batch.unwrap_or(sharded),
        replicas: mesh.degree(Axis::DataReplicate),
        split: mesh.degree(Axis::Tensor) > 1,
        experts: model.experts.is_some(),
    }
}

/// Micro-batches of a step on each rank.
pub(super) fn micro_batches(config: &Config, mesh: &Mesh) -> usize {
    let local = config.training.local_batch_size * mesh.data_parallel();
    config.training.global_batch_size.map_or(1, |global| (global / local).max(1))
}
