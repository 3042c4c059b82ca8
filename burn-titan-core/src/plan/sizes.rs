//! The sizes of what a step's actions handle, from a model's skeleton and a config.

use burn_titan_parallel::check::{Quantized, Scope, Sizes, Tied, UnitSizes};
use burn_titan_parallel::context_parallel::{Method, SequenceShards};
use burn_titan_parallel::host::Element;
use burn_titan_parallel::{Axis, Mesh};

use super::exchanges::SiteExchanges;
use crate::config::{ComputeDtype, Config, DeviceKind, OptimizerKind, ReduceDtype};
use crate::executor::{BLOCK, Layout, LocalParameter, Sharding, Sharers, UnitLayout, reshaped};
use crate::model::{ExpertRank, Model, ParameterSpec, Sharing, Workload};
use crate::optim::{OptimizerError, parameter_rules};
use crate::trainer::{TrainError, compute_dtype, context_method, tensor_rank};

/// The sizes on the first rank of those of a mesh that have these units (`owned`), and the units that do not say what
/// they take on a micro-batch.
pub(super) fn sizes(
    config: &Config,
    model: &Model,
    mesh: &Mesh,
    owned: &[bool],
) -> Result<(Sizes, Vec<String>), TrainError> {
    let shards = mesh.degree(Axis::DataShard) * mesh.degree(Axis::Context);
    let tensor = tensor_rank(config, mesh, 0);
    let expert = ExpertRank::of(mesh, 0);
    let layout = Layout::new(model, Sharding { rank: 0, ranks: shards, tensor, expert }, owned)?;
    let training = &config.training;
    let native = training.device == DeviceKind::Flex;
    let (context, method) = (mesh.degree(Axis::Context), context_method(config));
    let sequences = (context > 1).then(|| SequenceShards::new(training.seq_len, context));
    let sequences = sequences.transpose()?;
    let seq = sequences.as_ref().map_or(training.seq_len, |shards| shards.length(0));
    let workload = Workload {
        batch: training.local_batch_size,
        seq,
        compute: compute_dtype(config.precision.compute),
        native,
        sharing: Sharing {
            tensor,
            loss: config.parallelism.enable_loss_parallel,
            vocabulary: model.vocab_size,
            chunks: config.parallelism.async_tensor_parallel_chunks,
            sequences,
            gathers_keys: method == Method::AllGather,
            expert_ranks: expert.ranks,
        },
    };
    let compute = match config.precision.compute {
        ComputeDtype::Float32 => Element::F32,
        ComputeDtype::Bfloat16 => Element::BF16,
    };
    let exchanges = SiteExchanges { workload, method, compute };
    let mut not_counted = Vec::new();
    let units = model.units.iter().enumerate().map(|(number, unit)| {
        let unit = reshaped(&**unit, &layout);
        let activations = unit.activations(&workload);
        if activations.is_none() && owned[number] {
            not_counted.push(unit.name().to_string());
        }
        let UnitLayout { owned, tied, .. } = layout.unit(number);
        let here = |local: &LocalParameter| layout.piece(&local.spec.name, 0).len();
        let of = |sharers| owned.iter().filter(move |local| local.sharers == sharers);
        let tied = tied.iter().map(|local| Tied {
            owner: layout.owner(&local.spec.name),
            elements: local.elements(),
            shard: here(local),
        });
        let partial = layout.unit(number).partial().into_iter().map(|(holders, locals)| {
            let all = holders.len() == tensor.ranks;
            let elements = locals.iter().map(|local| local.elements()).sum();
            (if all { Scope::Tensor } else { Scope::Holders }, elements)
        });
        let apart = layout.unit(number).owned.iter().filter(|local| local.apart);
        UnitSizes {
            output: workload.stream_tokens() * model.dim,
            tied_apart: apart.map(LocalParameter::elements).sum(),
            partial: partial.collect(),
            exchanges: exchanges.of(&unit.sites().unwrap_or_default()),
            owned: of(Sharers::Shard).map(LocalParameter::elements).sum(),
            shard: of(Sharers::Shard).map(here).sum(),
            experts: of(Sharers::ExpertShard).map(LocalParameter::elements).sum(),
            expert_shard: of(Sharers::ExpertShard).map(here).sum(),
            tied: tied.collect(),
            activations: activations.unwrap_or_default(),
        }
    });
    let units = units.collect();
    let optimizer = OptimizerSizes::new(config, &layout, shards)?;
    let sizes = Sizes {
        units,
        shards,
        expert: expert.ranks,
        expert_shards: expert.shards,
        expert_loads: model.experts.as_ref().map_or(0, |experts| experts.each * experts.layers),
        replicas: mesh.degree(Axis::DataReplicate),
        tensor: tensor.ranks,
        holders: layout.most_holders(),
        context,
        pipeline: mesh.degree(Axis::Pipeline),
        world: mesh.world_size(),
        compute,
        reduce: match config.precision.reduce {
            ReduceDtype::Float32 => Element::F32,
            ReduceDtype::Bfloat16 => Element::BF16,
        },
        separate: !native,
        quantized: Quantized {
            parameters: config.comm.quantize.parameters(),
            gradients: config.comm.quantize.gradients(),
            block: BLOCK,
        },
        offload: training.enable_cpu_offload && !native,
        optimizer_state: optimizer.state,
        gathered_by_optimizer: optimizer.gathered,
        optimizer_working: optimizer.working,
        // Token, target, first key and position, each of 32 bits; and the positions of whole sequences.
        micro_batch: 16 * workload.tokens() as u64
            + sequences.map_or(0, |shards| 4 * (workload.batch * shards.seq()) as u64),
    };
    Ok((sizes, not_counted))
}

/// What the optimizer takes.
struct OptimizerSizes {
    /// Bytes of its state on this rank.
    state: u64,
    /// Elements of the matrices that it gathers to their owners.
    gathered: usize,
    /// Most bytes that it holds while it updates.
    working: u64,
}

impl OptimizerSizes {
    fn new(config: &Config, layout: &Layout, shards: usize) -> Result<Self, OptimizerError> {
        let specs: Vec<ParameterSpec> =
            layout.parameters().map(|local| local.spec.clone()).collect();
        let rules = parameter_rules(&config.optimizer, &specs)?;
        let (mut state, mut matrices) = (0, Vec::new());
        for spec in &specs {
            let here = layout.piece(&spec.name, 0).len();
            state += match rules[&spec.name].kind {
                OptimizerKind::Adamw => 2 * here,
                OptimizerKind::Muon => {
                    matrices.push((spec, here));
                    here
                }
            };
        }
        // A matrix, its multiple of itself and the product that is added to it (which the CPU clears in a copy), and
        // two squares of its smaller side.
        let orthogonalised = |spec: &ParameterSpec| {
            let smaller = spec.shape.iter().min().copied().unwrap_or(0);
            5 * spec.elements() + 3 * smaller * smaller
        };
        let largest = matrices.iter().map(|(spec, _)| orthogonalised(spec)).max().unwrap_or(0);
        let elements: usize = matrices.iter().map(|(spec, _)| spec.elements()).sum();
        let pieces: usize = matrices.iter().map(|(_, here)| here).sum();
        // Ranks hold the updates of all matrices at once: their pieces, packed, received, and put together.
        let exchanged = if shards > 1 { 4 * pieces } else { 0 };
        Ok(Self {
            state: 4 * state as u64,
            gathered: if shards > 1 { elements } else { 0 },
            working: 4 * (exchanged + largest) as u64,
        })
    }
}
