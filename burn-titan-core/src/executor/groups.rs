//! The ranks that a rank exchanges tensors with.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_titan_parallel::{
    Axis, CommError, Communicator, Mesh, OneRank, Peers, Reduction, Trace, World,
};

use burn_titan_parallel::check::Scope;
use burn_titan_parallel::context_parallel::{ContextParallel, Method};
use burn_titan_parallel::expert_parallel::ExpertParallel;
use burn_titan_parallel::tensor_parallel::TensorParallel;

use super::layout::{Sharding, Sharers};
use crate::model::{ExpertRank, Parallel, TensorRank};

/// The groups of one rank, one for each purpose.
pub struct Groups {
    /// The ranks that share what a rank of `tp` has of the parameters: each holds a shard of every unit. Those of
    /// `dp_shard` and of `cp`.
    pub shard: Box<dyn Communicator>,
    /// The ranks that share the parameters of the same experts, where experts are dealt out. Those that `ep` leaves of
    /// `dp_shard`, `cp` and `tp`.
    pub expert_shard: Box<dyn Communicator>,
    /// The ranks that hold the same shard, one in each copy of the model.
    pub replicate: Box<dyn Communicator>,
    /// The ranks that hold one copy of the model together.
    pub norm: Box<dyn Communicator>,
    /// All ranks.
    pub world: Box<dyn Communicator>,
    /// The ranks that split each matrix product.
    pub tensor: Peers,
    /// The ranks that split each sequence.
    pub context: Peers,
    /// The ranks that have all experts together.
    pub expert: Peers,
    /// How modules use these three.
    pub parallel: Parallel,
    /// The ranks that have other stages of the pipeline, by their places there.
    pub pipeline: Box<dyn Communicator>,
    /// The two of them that have a parameter together.
    pub tied: Box<dyn Communicator>,
    /// The place on `pp` of the rank that has each unit; none where every rank has all.
    stages: Vec<usize>,
    /// Those of `tp` that hold the same part of a parameter, by their places there, where these are some, but not
    /// all of them.
    pub holders: Vec<(Range<usize>, Box<dyn Communicator>)>,
    /// What the ranks read and give.
    pub roles: Roles,
    /// What this rank does, when it is asked for.
    pub trace: Trace,
}

/// How the ranks of `tp` and `cp` split a model.
#[derive(Debug, Clone)]
pub struct ModelSplit {
    /// Places on `tp`, this rank's among them, where a part of a parameter is the same.
    pub holders: Vec<Range<usize>>,
    /// Whether the ranks of `tp` share the tokens of the residual stream.
    pub sequence: bool,
    /// Whether each rank of `tp` has the logits of a part of the vocabulary only.
    pub loss: bool,
    /// Words of the vocabulary.
    pub vocabulary: usize,
    /// Chunks in which the ranks of `tp` run what treats every token alone.
    pub chunks: usize,
    /// How the ranks of `cp` exchange keys and values.
    pub context: Method,
    /// The place on `pp` of the rank that has each unit; none where every rank has all.
    pub stages: Vec<usize>,
    /// The two places on `pp` that have a parameter together.
    pub tied: Option<[usize; 2]>,
}

impl Default for ModelSplit {
    /// No rank splits anything.
    fn default() -> Self {
        Self {
            holders: vec![],
            sequence: false,
            loss: false,
            vocabulary: 0,
            chunks: 1,
            context: Method::Ring,
            stages: vec![],
            tied: None,
        }
    }
}

/// What of a step comes from which rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// This rank.
    rank: usize,
    /// For each rank, its place among those that read different samples.
    data: Vec<usize>,
    /// Whether each rank's losses are summands of the step's: of those that have the same loss, only one's.
    loss: Vec<bool>,
    /// Whether each rank's samples count: of those that read the same, only one's.
    samples: Vec<bool>,
}

impl Roles {
    /// `last` is the place on `pp` that has the last unit.
    fn new(rank: usize, mesh: &Mesh, last: usize) -> Self {
        let first = |rank, axis| mesh.coordinate(rank, axis) == 0;
        let ranks = || 0..mesh.world_size();
        Self {
            rank,
            data: ranks().map(|rank| mesh.data_rank(rank)).collect(),
            loss: ranks()
                .map(|rank| {
                    first(rank, Axis::Tensor) && mesh.coordinate(rank, Axis::Pipeline) == last
                })
                .collect(),
            samples: ranks()
                .map(|rank| {
                    let axes = [Axis::Tensor, Axis::Context, Axis::Pipeline];
                    axes.into_iter().all(|axis| first(rank, axis))
                })
                .collect(),
        }
    }

    /// Its place among the ranks that read different samples.
    pub fn data_rank(&self, rank: usize) -> usize {
        self.data[rank]
    }

    /// Ranks that read different samples.
    pub fn data_ranks(&self) -> usize {
        self.data.iter().max().map_or(1, |last| last + 1)
    }

    /// The first rank that reads the samples of a place among those that read different ones.
    pub fn reader(&self, place: usize) -> usize {
        self.data.iter().position(|data| *data == place).unwrap_or(0)
    }

    /// Whether a rank reads the samples that this one reads.
    pub fn reads_with(&self, rank: usize) -> bool {
        self.data[rank] == self.data[self.rank]
    }

    /// Whether a rank's losses are summands.
    pub fn gives_loss(&self, rank: usize) -> bool {
        self.loss[rank]
    }

    /// A count of this rank's samples, as a summand of the count of all.
    pub fn samples(&self, count: usize) -> usize {
        if self.samples[self.rank] { count } else { 0 }
    }

    /// A loss of this rank, as a summand of that of all.
    pub fn loss(&self, loss: f64) -> f64 {
        if self.loss[self.rank] { loss } else { 0.0 }
    }
}

impl Groups {
    /// The groups of a world of one rank.
    pub fn one() -> Self {
        let one = || Box::new(OneRank);
        let roles = Roles { rank: 0, data: vec![0], loss: vec![true], samples: vec![true] };
        Self {
            shard: one(),
            expert_shard: one(),
            replicate: one(),
            norm: one(),
            world: one(),
            tensor: Peers::alone(),
            context: Peers::alone(),
            expert: Peers::alone(),
            parallel: Parallel::alone(),
            pipeline: one(),
            tied: one(),
            stages: vec![],
            holders: vec![],
            roles,
            trace: Trace::default(),
        }
    }

    /// The groups of this rank on a mesh of the world's ranks.
    ///
    /// # Errors
    /// If a group cannot be made.
    pub fn new(world: &World, mesh: &Mesh, split: &ModelSplit) -> Result<Self, CommError> {
        let along = |name: &str, axes: &[Axis]| {
            world.communicator(name, &mesh.group_of(world.rank(), axes))
        };
        let ranks = mesh.group(world.rank(), Axis::Tensor);
        let some = |places: &&Range<usize>| places.len() > 1 && places.len() < ranks.len();
        let holders = split.holders.iter().filter(some).map(|places| {
            let name = format!("tp {}..{}", places.start, places.end);
            Ok((places.clone(), world.communicator(&name, &ranks[places.clone()])?))
        });
        let tensor = Peers::new(along("tp", &[Axis::Tensor])?);
        let context = Peers::new(along("cp", &[Axis::Context])?);
        // Where experts are not dealt out, they lie as other parameters do.
        let dealt = ExpertRank::of(mesh, world.rank()).deals();
        let expert = Peers::new(along("ep", &[Axis::Expert])?);
        let expert_shard: Box<dyn Communicator> = match dealt {
            true => along("ep_shard", &[Axis::ExpertShard])?,
            false => Box::new(OneRank),
        };
        let stages = mesh.group(world.rank(), Axis::Pipeline);
        let here = mesh.coordinate(world.rank(), Axis::Pipeline);
        let tied: Box<dyn Communicator> = match split.tied {
            Some(places) if places.contains(&here) => {
                world.communicator("pp tied", &places.map(|place| stages[place]))?
            }
            _ => Box::new(OneRank),
        };
        let parallel = Parallel {
            tensor: TensorParallel::new(
                tensor.clone(),
                split.sequence && tensor.several(),
                split.loss && tensor.several(),
                split.vocabulary,
            ),
            chunks: split.chunks,
            context: ContextParallel::new(context.clone(), split.context),
            expert: ExpertParallel::new(expert.clone()),
        };
        Ok(Self {
            shard: along("dp_shard", &[Axis::DataShard, Axis::Context])?,
            expert_shard,
            replicate: along("dp_replicate", &[Axis::DataReplicate])?,
            norm: along("norm", Scope::Norm.axes())?,
            world: along("world", &Axis::ALL)?,
            tensor,
            context,
            expert,
            parallel,
            pipeline: along("pp", &[Axis::Pipeline])?,
            tied,
            stages: split.stages.clone(),
            holders: holders.collect::<Result<_, CommError>>()?,
            roles: Roles::new(world.rank(), mesh, split.stages.last().copied().unwrap_or(0)),
            trace: world.trace().clone(),
        })
    }

    /// This rank among those that hold the parameters.
    pub fn sharding(&self) -> Sharding {
        let (rank, ranks) = (self.shard.rank(), self.shard.size());
        let sequence = self.parallel.tensor.cuts_stream();
        let tensor = TensorRank { rank: self.tensor.rank(), ranks: self.tensor.size(), sequence };
        let expert = match self.expert.several() {
            false => ExpertRank::ALONE,
            true => ExpertRank {
                rank: self.expert.rank(),
                ranks: self.expert.size(),
                shard: self.expert_shard.rank(),
                shards: self.expert_shard.size(),
            },
        };
        Sharding { rank, ranks, tensor, expert }
    }

    /// The ranks at these places of `tp`, this rank's among them.
    ///
    /// # Panics
    /// If the groups were made without them.
    pub fn holders(&self, places: &Range<usize>) -> &dyn Communicator {
        if places.len() == self.tensor.size() {
            return self.tensor.communicator();
        }
        let known = self.holders.iter().find(|(known, _)| known == places);
        let (_, communicator) = known.expect("a group for each part of a parameter");
        &**communicator
    }

    /// The ranks that share parameters by a rule, if there are others.
    pub(super) fn sharers(&self, sharers: Sharers) -> Option<&dyn Communicator> {
        let communicator = match sharers {
            Sharers::Shard => &*self.shard,
            Sharers::ExpertShard => &*self.expert_shard,
            Sharers::Nobody => return None,
        };
        (communicator.size() > 1).then_some(communicator)
    }

    /// The place on `pp` of the rank that has a unit.
    pub(super) fn stage(&self, unit: usize) -> usize {
        self.stages.get(unit).copied().unwrap_or(0)
    }

    /// Which of so many units this rank has.
    pub fn owned(&self, units: usize) -> Vec<bool> {
        (0..units)
            .map(|unit| self.stages.is_empty() || self.stage(unit) == self.pipeline.rank())
            .collect()
    }

    /// Whether what modules have exchanged in the middle of their computation has arrived.
    ///
    /// # Errors
    /// The first error of such an exchange.
    pub fn check(&self) -> Result<(), CommError> {
        self.tensor.check()?;
        self.context.check()?;
        self.expert.check()
    }

    /// Whether there are other ranks.
    pub fn several(&self) -> bool {
        self.world.size() > 1
    }

    /// The sums of counts over all ranks.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn totals<const N: usize>(
        &self,
        counts: [usize; N],
        device: &Device,
    ) -> Result<[usize; N], CommError> {
        if !self.several() {
            return Ok(counts);
        }
        // Each as two numbers, for integers of devices have 32 bits.
        let halves = |count: usize| [(count >> 24) as i32, (count & 0xff_ffff) as i32];
        let parts: Vec<i32> = counts.into_iter().flat_map(halves).collect();
        let sum = self.sums(&parts, device)?;
        Ok(std::array::from_fn(|i| ((sum[2 * i] as usize) << 24) + sum[2 * i + 1] as usize))
    }

    /// The sums of numbers over all ranks; they must fit into 32 bits.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn sums(&self, numbers: &[i32], device: &Device) -> Result<Vec<i32>, CommError> {
        if !self.several() {
            return Ok(numbers.to_vec());
        }
        let sum = self.world.all_reduce(integers(numbers, device).into(), Reduction::Sum);
        Ok(host_integers(sum.wait()?.int()))
    }

    /// The largest of a number over all ranks.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn largest(&self, value: i32, device: &Device) -> Result<i32, CommError> {
        if !self.several() {
            return Ok(value);
        }
        let most =
            self.world.all_reduce(integers(&[value], device).into(), Reduction::Max).wait()?;
        Ok(host_integers(most.int())[0])
    }

    /// The sum of a number over all ranks, in their order.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn sum(&self, value: f64, device: &Device) -> Result<f64, CommError> {
        // As two numbers of single precision, whose sum is the number to 48 bits.
        let high = value as f32;
        let low = (value - f64::from(high)) as f32;
        Ok(self.all(&[high, low], device)?.into_iter().map(f64::from).sum())
    }

    /// What one of all ranks says.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn told_by(&self, rank: usize, text: &str, device: &Device) -> Result<String, CommError> {
        if !self.several() {
            return Ok(text.into());
        }
        let length = if self.world.rank() == rank { text.len() as i32 } else { 0 };
        let length = self.largest(length, device)? as usize;
        if length == 0 {
            return Ok(String::new());
        }
        // Not every device stores bytes.
        let mut bytes: Vec<i32> = text.bytes().map(i32::from).collect();
        bytes.resize(length, 0);
        let said = self.world.broadcast(integers(&bytes, device).into(), rank).wait()?.int();
        let bytes: Vec<u8> = host_integers(said).into_iter().map(|byte| byte as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The numbers of every rank, in their order; each gives as many.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn all(&self, values: &[f32], device: &Device) -> Result<Vec<f32>, CommError> {
        if !self.several() {
            return Ok(values.to_vec());
        }
        let shard = super::on_device(values.to_vec(), device);
        let lengths = vec![values.len(); self.world.size()];
        Ok(super::on_host(self.world.all_gather_floats(shard, &lengths).wait()?))
    }
}

fn integers(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, DType::I32))
}

fn host_integers(tensor: Tensor<1, Int>) -> Vec<i32> {
    tensor.into_data().try_into_vec::<i32>().expect("integers of 32 bits were sent")
}
