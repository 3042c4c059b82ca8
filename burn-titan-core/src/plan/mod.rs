//! What a run takes, counted before it begins: memory, traffic and work of a rank, at 4 ranks as at 16,384, with no
//! device and no tensor.
//!
//! The step's program is written as for a run ([`classes`]), proved for all ranks ([`check`]), and gone through with
//! the sizes of what each action handles ([`plan`]).

mod exchanges;
mod hardware;
mod pipeline;
mod sizes;

pub use hardware::{Estimate, ExchangeEstimate, Hardware, UnknownHardware};
pub use pipeline::{PipelinePlan, PipelineRank, StagePlan};

use burn_titan_parallel::check::{
    Class, Footprint, Memory, Operation, Scope, check_all, operations,
};
use burn_titan_parallel::host::bytes_sent;
use burn_titan_parallel::step::Pipeline;
use burn_titan_parallel::{Axis, Mesh, step};
use serde::Serialize;

use crate::config::Config;
use crate::model::Model;
use crate::trainer::{Prepared, TrainError, pipeline, strategy};

/// What a step of a run takes on its ranks. Bytes and operations are those of the first rank of the stage that holds most,
/// whose shards are the largest; others' are an element smaller at most.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The model.
    pub model: ModelSize,
    /// Ranks of the mesh.
    pub ranks: usize,
    /// The axes that arrange the ranks, outermost first; behind them, where experts are dealt out, those of experts.
    pub mesh: Vec<AxisDegree>,
    /// The step.
    pub step: StepSize,
    /// Memory of a rank.
    pub memory: RankMemory,
    /// What a rank sends in a step, by the axis along which its peers are.
    pub sent: Vec<Traffic>,
    /// The pipeline, where there is one.
    pub pipeline: Option<PipelinePlan>,
}

/// The size of a model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelSize {
    /// Name of the family.
    pub name: String,
    /// Name of the flavor.
    pub flavor: String,
    /// Elements of all parameters.
    pub parameters: u64,
    /// Units that it is cut into.
    pub units: usize,
}

/// An axis of the mesh.
#[derive(Debug, Clone, Serialize)]
pub struct AxisDegree {
    /// Its name.
    pub axis: String,
    /// Ranks along it.
    pub degree: usize,
    /// What these share, or have each for themselves.
    pub purpose: &'static str,
}

/// The size of a step.
#[derive(Debug, Clone, Serialize)]
pub struct StepSize {
    /// Micro-batches of a rank.
    pub micro_batches: usize,
    /// Sequences of a micro-batch.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Tokens of all ranks.
    pub tokens: u64,
    /// Actions of a rank's program.
    pub actions: usize,
    /// Floating-point operations of all ranks, as MFU counts them: what is computed again is not among them.
    pub flops: f64,
}

/// Memory of a rank, in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct RankMemory {
    /// When most is alive on the device.
    pub peak: Peak,
    /// The most of each purpose on the device; not all at one time.
    pub most: Memory,
    /// The most of each purpose in the host's memory, where `training.enable_cpu_offload` keeps it there.
    pub host: Memory,
    /// Units that do not say what they take on a micro-batch: of these only the parameters are counted.
    pub not_counted: Vec<String>,
}

/// When most is alive.
#[derive(Debug, Clone, Serialize)]
pub struct Peak {
    /// Bytes that are alive.
    pub bytes: u64,
    /// Position of the action in the program, from 0.
    pub index: usize,
    /// The action.
    pub action: String,
    /// What they are for.
    pub memory: Memory,
}

/// What a rank sends along an axis.
#[derive(Debug, Clone, Serialize)]
pub struct Traffic {
    /// The axis: `dp_shard` (with `cp`, whose ranks share the parameters too), `ep` (where the router sends as much to
    /// every expert), `ep_shard`, `dp_replicate`, `tp`, `cp`, `pp`, `norm` (all of these, for the norm of the gradients),
    /// or `all`.
    pub axis: String,
    /// Ranks that exchange.
    pub ranks: usize,
    /// Neighbouring ranks of which these are some, from the first of them to the last.
    pub span: usize,
    /// Collective operations.
    pub operations: usize,
    /// Payload that the rank sends, in bytes, with the algorithms of the communicators `local` and `tcp`
    /// ([`bytes_sent`]).
    pub bytes: u64,
}

/// The ranks that a config's degrees make; where `data_parallel_shard_degree` takes what is left, that is what the
/// expert-parallel degree borrows of it.
pub fn fewest_ranks(config: &Config) -> usize {
    let d = config.parallelism.degrees();
    let [context, tensor, expert] = [d.context, d.tensor, d.expert].map(|degree| degree.max(1));
    let borrowed = expert / common_divisor(expert, context.saturating_mul(tensor));
    let shard = if d.data_shard < 1 { borrowed } else { d.data_shard };
    let factors = [d.pipeline.max(1), d.data_replicate.max(1), shard, context, tensor];
    factors.into_iter().fold(1, |ranks, degree| ranks.saturating_mul(degree as usize))
}

/// The greatest of two numbers above 0.
fn common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// What the ranks of a mesh do in a step, with this pipeline, and with what sizes: all of a stage do the same, and the classes are in the
/// order of `pp`.
///
/// # Errors
/// If the optimizer's groups do not fit the model, or it cannot be split over so many ranks.
pub fn classes(
    config: &Config,
    model: &Model,
    mesh: &Mesh,
    pipeline: Option<&Pipeline>,
) -> Result<Vec<Class>, TrainError> {
    let counted = counted(config, model, mesh, pipeline)?;
    Ok(counted.into_iter().map(|(class, _)| class).collect())
}

/// As [`classes`], with the units that do not say what they take.
fn counted(
    config: &Config,
    model: &Model,
    mesh: &Mesh,
    pipeline: Option<&Pipeline>,
) -> Result<Vec<(Class, Vec<String>)>, TrainError> {
    let strategy = strategy(config, model, mesh);
    let units = model.units.len();
    let class = |owned: &[bool], program| {
        let (sizes, not_counted) = sizes::sizes(config, model, mesh, owned)?;
        Ok((Class { program, sizes }, not_counted))
    };
    match pipeline {
        None => Ok(vec![class(&vec![true; units], step::training(units, &strategy))?]),
        Some(pipeline) => (0..mesh.degree(Axis::Pipeline))
            .map(|rank| class(&pipeline.owned(rank), step::pipelined(pipeline, rank, &strategy)))
            .collect(),
    }
}

/// Proves the step's programs on all of `ranks` ranks.
///
/// # Errors
/// If there is no mesh of them, or a program is wrong.
pub fn check(prepared: &Prepared, ranks: usize) -> Result<(), TrainError> {
    let Prepared { config, model } = prepared;
    let mesh = Mesh::new(config.parallelism.degrees(), ranks)?;
    let stage = |rank| mesh.coordinate(rank, Axis::Pipeline);
    let pipeline = pipeline(config, model, &mesh)?;
    check_all(&mesh, &classes(config, model, &mesh, pipeline.as_ref())?, stage)?;
    Ok(())
}

/// What a step of a run takes on `ranks` ranks.
///
/// # Errors
/// As [`check`].
pub fn plan(prepared: &Prepared, ranks: usize) -> Result<Plan, TrainError> {
    let Prepared { config, model } = prepared;
    let mesh = Mesh::new(config.parallelism.degrees(), ranks)?;
    let pipeline = pipeline(config, model, &mesh)?;
    let (classes, mut not_counted): (Vec<Class>, Vec<_>) =
        counted(config, model, &mesh, pipeline.as_ref())?.into_iter().unzip();
    let stage = |rank| mesh.coordinate(rank, Axis::Pipeline);
    let footprints = check_all(&mesh, &classes, stage)?;
    // The stage that holds most.
    let peak = |stage: &usize| footprints[*stage].peak.memory.total();
    let most = (0..classes.len()).rev().max_by_key(peak).unwrap_or(0);
    let (class, not_counted) = (&classes[most], not_counted.swap_remove(most));
    let training = &config.training;
    let micro_batches = class.program.micro_batches;
    let tokens = (micro_batches * training.local_batch_size * training.seq_len) as u64
        * mesh.data_parallel() as u64;
    Ok(Plan {
        model: ModelSize {
            name: config.model.name.clone(),
            flavor: config.model.flavor.clone(),
            parameters: model.parameter_count(),
            units: model.units.len(),
        },
        ranks,
        mesh: axes(&mesh),
        step: StepSize {
            micro_batches,
            sequences: training.local_batch_size,
            seq_len: training.seq_len,
            tokens,
            actions: class.program.actions.len(),
            flops: tokens as f64 * model.flops_per_token(training.seq_len),
        },
        memory: rank_memory(&footprints[most], not_counted),
        sent: traffic(class, &mesh),
        pipeline: pipeline
            .map(|pipeline| PipelinePlan::new(config, model, &pipeline, &classes, &footprints))
            .transpose()?,
    })
}

/// All axes; those of experts where these are dealt out.
fn axes(mesh: &Mesh) -> Vec<AxisDegree> {
    let dealt = mesh.degree(Axis::Expert) > 1;
    let experts = [Axis::Expert, Axis::ExpertShard].into_iter().filter(|_| dealt);
    Axis::ALL.into_iter().chain(experts).map(|axis| axis_degree(mesh, axis)).collect()
}

fn axis_degree(mesh: &Mesh, axis: Axis) -> AxisDegree {
    let purpose = match axis {
        Axis::Pipeline => "each has some of the units",
        Axis::DataReplicate => "each has a copy of the model, and samples of its own",
        Axis::DataShard => {
            "share parameters, gradients and optimizer state; each has samples of its own"
        }
        Axis::Context => "share each sequence",
        Axis::Tensor => "share each matrix product",
        Axis::Expert => "have all experts together, some each; of dp_shard, cp and tp",
        Axis::ExpertShard => "share the parameters of the same experts",
    };
    AxisDegree { axis: axis.to_string(), degree: mesh.degree(axis), purpose }
}

fn rank_memory(footprint: &Footprint, not_counted: Vec<String>) -> RankMemory {
    let Footprint { peak, most, host } = footprint;
    RankMemory {
        peak: Peak {
            bytes: peak.memory.total(),
            index: peak.index,
            action: peak.action.to_string(),
            memory: peak.memory,
        },
        most: *most,
        host: *host,
        not_counted,
    }
}

/// What the first rank sends.
fn traffic(class: &Class, mesh: &Mesh) -> Vec<Traffic> {
    let Class { program, sizes } = class;
    let mut sent: Vec<Traffic> = Scope::ALL
        .into_iter()
        .map(|scope| {
            let (axis, ranks) = (scope.to_string(), sizes.ranks(scope));
            let along = |axis: &Axis| (mesh.degree(*axis) - 1) * mesh.stride(*axis);
            let span = 1 + scope.axes().iter().map(along).sum::<usize>();
            Traffic { axis, ranks, span, operations: 0, bytes: 0 }
        })
        .collect();
    for action in &program.actions {
        for operation in operations(action, program.micro_batches, sizes) {
            let traffic = &mut sent[operation.scope as usize];
            let Operation { kind, count, own, element, .. } = operation;
            let bytes = bytes_sent(kind, traffic.ranks, count, own, element);
            traffic.operations += 1;
            traffic.bytes += bytes;
        }
    }
    sent.retain(|traffic| traffic.ranks > 1);
    sent
}
