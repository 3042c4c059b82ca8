//! Full parameters out of the ranks' shards, and the ranks' shards of the summed gradients.

use std::collections::HashMap;

use burn::tensor::{DType, Device, Tensor};
use burn_titan_kernels::{pack, unpack};
use burn_titan_parallel::communicator::{all_gather_quantized, reduce_scatter_quantized};
use burn_titan_parallel::{CommError, Communicator, Work};

use super::layout::{LocalParameter, Sharers};
use super::{GradientStore, Machine, ParameterStore};
use crate::model::Context;

/// Elements that share a scale where they travel as int8.
pub(crate) const BLOCK: usize = 256;

/// A unit's full parameters on their way here; nothing where this rank holds them.
pub(super) struct Gathering {
    /// Those that belong to the unit, by bucket.
    owned: Vec<Option<Work<Tensor<1>>>>,
    /// Those that belong to an earlier unit, in order.
    tied: Vec<Option<Work<Tensor<1>>>>,
}

/// The sums of a unit's gradients under way, by bucket.
pub(super) struct Reducing(Vec<BucketSum>);

/// The sum of the gradients of a bucket under way.
enum BucketSum {
    /// There is no other rank: the gradients of the parameters, where they have one.
    Here(Vec<Option<Tensor<1>>>),
    /// The bucket of them all.
    Summing {
        work: Work<Tensor<1>>,
        /// Which of the parameters have a gradient.
        present: Vec<bool>,
    },
}

impl Machine<'_> {
    /// Begins to gather a unit's parameters in the compute dtype.
    pub(super) fn gather(&self, unit: usize, parameters: &ParameterStore) -> Gathering {
        let layout = parameters.layout().unit(unit);
        let piece = |local: &LocalParameter| Some(parameters.get(&local.spec.name)?.value());
        let owned = layout.buckets.iter().map(|bucket| {
            let ranks = self.groups.sharers(bucket.sharers)?;
            let pieces: Vec<Tensor<1>> = layout.members(bucket).filter_map(piece).collect();
            Some(self.gather_pieces(ranks, &pieces, &bucket.flat.shard_lengths()))
        });
        let tied = layout.tied.iter().map(|local| {
            let ranks = self.groups.sharers(local.sharers)?;
            let lengths = parameters.layout().piece_lengths(&local.spec.name);
            let piece: Vec<Tensor<1>> = piece(local).into_iter().collect();
            Some(self.gather_pieces(ranks, &piece, &lengths))
        });
        Gathering { owned: owned.collect(), tied: tied.collect() }
    }

    /// Begins to gather what the ranks have each of a bucket, of which these pieces are here.
    fn gather_pieces(
        &self,
        ranks: &dyn Communicator,
        pieces: &[Tensor<1>],
        lengths: &[usize],
    ) -> Work<Tensor<1>> {
        let packed = self.packed(pieces, lengths[ranks.rank()]);
        if self.quantize.parameters() && fills(lengths) {
            return all_gather_quantized(ranks, packed, lengths, BLOCK);
        }
        ranks.all_gather_floats(packed, lengths)
    }

    /// Tensors in one piece, in the compute dtype.
    fn packed(&self, pieces: &[Tensor<1>], elements: usize) -> Tensor<1> {
        if elements == 0 {
            return Tensor::empty([0], (self.device, self.compute));
        }
        pack(pieces, self.compute, elements)
    }

    /// Waits for a unit's parameters: each flat, by name, on the device; in the compute dtype, but for what nobody
    /// shares because it balances routers.
    pub(super) fn gathered(
        &self,
        unit: usize,
        gathering: Gathering,
        parameters: &ParameterStore,
    ) -> Result<HashMap<String, Tensor<1>>, CommError> {
        let layout = parameters.layout().unit(unit);
        let mut full = HashMap::new();
        let whole = |local: &LocalParameter| {
            let whole = parameters.get(&local.spec.name).expect("a rank that shares with none");
            let value = match local.sharers {
                Sharers::Nobody => whole.value(),
                _ => whole.value().cast(self.compute),
            };
            (local.spec.name.clone(), moved(value, self.device))
        };
        for (bucket, work) in layout.buckets.iter().zip(gathering.owned) {
            let Some(work) = work else {
                full.extend(layout.members(bucket).map(whole));
                continue;
            };
            let lengths: Vec<usize> =
                layout.members(bucket).map(LocalParameter::elements).collect();
            let values = moved(work.wait()?, self.device);
            let names = layout.members(bucket).map(|local| local.spec.name.clone());
            full.extend(names.zip(unpack(values, &lengths, self.compute)));
        }
        for (local, work) in layout.tied.iter().zip(gathering.tied) {
            full.extend([match work {
                Some(work) => (local.spec.name.clone(), moved(work.wait()?, self.device)),
                None => whole(local),
            }]);
        }
        Ok(full)
    }

    /// Sums the gradients of those of a unit's own parameters of which several ranks of `tp` have the same part, and
    /// each a summand of its gradient.
    pub(super) fn sum_partial(
        &self,
        unit: usize,
        parameters: &ParameterStore,
        full: &mut GradientStore,
    ) -> Result<(), CommError> {
        for (holders, locals) in parameters.layout().unit(unit).partial() {
            // A parameter that took no part has no gradient on any of them, but its place in the sum.
            let gradients = locals.iter().map(|local| full.take(&local.spec.name));
            let gradients: Vec<Option<Tensor<1>>> = gradients.collect();
            let present: Vec<bool> = gradients.iter().map(Option::is_some).collect();
            let pairs = gradients.into_iter().zip(&locals);
            let gradients: Vec<Tensor<1>> =
                pairs.map(|(gradient, local)| self.or_zeros(gradient, local)).collect();
            let lengths: Vec<usize> = locals.iter().map(|local| local.elements()).collect();
            let bucket = pack(&gradients, self.reduce, lengths.iter().sum());
            let sum = self.groups.holders(&holders).all_reduce_sum(bucket).wait()?;
            let sums = unpack(sum, &lengths, DType::F32);
            for ((local, sum), present) in locals.iter().zip(sums).zip(present) {
                if present {
                    full.put(&local.spec.name, sum);
                }
            }
        }
        Ok(())
    }

    /// Begins to send hidden states, or their gradient, to the rank that has a unit.
    pub(super) fn send(&self, hidden: Tensor<3>, unit: usize) -> Work<()> {
        let elements = hidden.shape().num_elements();
        let stage = self.groups.stage(unit);
        self.groups.pipeline.send(hidden.reshape([elements]).into(), stage)
    }

    /// Waits for hidden states, or their gradient, from the rank that has a unit.
    pub(super) fn receive(&self, context: &Context, unit: usize) -> Result<Tensor<3>, CommError> {
        let shape = context.stream_shape(self.width);
        let elements: usize = shape.iter().product();
        let like = Tensor::<1>::empty([elements], (self.device, self.compute));
        let received = self.groups.pipeline.receive(like.into(), self.groups.stage(unit));
        Ok(received.wait()?.float().reshape(shape))
    }

    /// Sums the gradients of those of a unit's parameters that a unit of another stage has too, over the two stages.
    pub(super) fn sum_tied(
        &self,
        unit: usize,
        parameters: &ParameterStore,
        full: &mut GradientStore,
    ) -> Result<(), CommError> {
        let owned = parameters.layout().unit(unit).owned.iter();
        for local in owned.filter(|local| local.apart) {
            let gradient = self.or_zeros(full.take(&local.spec.name), local);
            let gradient = pack(&[gradient], self.reduce, local.elements());
            let sum = self.groups.tied.all_reduce_sum(gradient).wait()?;
            full.put(&local.spec.name, sum.cast(DType::F32));
        }
        Ok(())
    }

    fn or_zeros(&self, gradient: Option<Tensor<1>>, local: &LocalParameter) -> Tensor<1> {
        gradient.unwrap_or_else(|| Tensor::zeros([local.elements()], (self.device, DType::F32)))
    }

    /// Begins to sum the gradients of a unit's own parameters over the ranks that share them. A tied
    /// parameter's gradient is whole only when the unit that it belongs to has run backward.
    pub(super) fn reduce(
        &self,
        unit: usize,
        parameters: &ParameterStore,
        full: &mut GradientStore,
    ) -> Reducing {
        let layout = parameters.layout().unit(unit);
        let sums = layout.buckets.iter().map(|bucket| {
            let locals: Vec<&LocalParameter> = layout.members(bucket).collect();
            let gradients: Vec<_> =
                locals.iter().map(|local| full.take(&local.spec.name)).collect();
            let ranks = match bucket.sharers {
                Sharers::Shard => &*self.groups.shard,
                Sharers::ExpertShard => &*self.groups.expert_shard,
                // What nobody shares has no gradients.
                Sharers::Nobody => return BucketSum::Here(gradients),
            };
            if ranks.size() * self.groups.replicate.size() == 1 {
                return BucketSum::Here(gradients);
            }
            let present = gradients.iter().map(Option::is_some).collect();
            let pairs = gradients.into_iter().zip(locals);
            let gradients: Vec<Tensor<1>> =
                pairs.map(|(gradient, local)| self.or_zeros(gradient, local)).collect();
            let lengths = bucket.flat.shard_lengths();
            let quantized = self.quantize.gradients() && ranks.size() > 1 && fills(&lengths);
            let dtype = if quantized { DType::F32 } else { self.reduce };
            let packed = pack(&gradients, dtype, bucket.flat.elements());
            let packed = moved(packed, parameters.device());
            let work = match quantized {
                true => reduce_scatter_quantized(ranks, packed, &lengths, BLOCK),
                false => ranks.reduce_scatter_sum(packed, &lengths),
            };
            BucketSum::Summing { work, present }
        });
        Reducing(sums.collect())
    }

    /// Waits for the sums over the ranks that share the parameters and begins those over the copies.
    pub(super) fn all_reduce(&self, reducing: Reducing) -> Result<Reducing, CommError> {
        let sum = |sum: BucketSum| match sum {
            BucketSum::Summing { work, present } => {
                let work = self.groups.replicate.all_reduce_sum(work.wait()?);
                Ok(BucketSum::Summing { work, present })
            }
            here => Ok(here),
        };
        Ok(Reducing(reducing.0.into_iter().map(sum).collect::<Result<_, CommError>>()?))
    }

    /// Waits for the sums of a unit's gradients and adds this rank's pieces of them to `sums`.
    pub(super) fn reduced(
        &self,
        unit: usize,
        reducing: Reducing,
        parameters: &ParameterStore,
        sums: &mut GradientStore,
    ) -> Result<(), CommError> {
        let layout = parameters.layout().unit(unit);
        for (bucket, sum) in layout.buckets.iter().zip(reducing.0) {
            let (work, present) = match sum {
                BucketSum::Here(gradients) => {
                    for (local, gradient) in layout.members(bucket).zip(gradients) {
                        if let Some(gradient) = gradient {
                            sums.accumulate(&local.spec.name, moved(gradient, parameters.device()));
                        }
                    }
                    continue;
                }
                BucketSum::Summing { work, present } => (work, present),
            };
            let here = |local: &LocalParameter| {
                parameters.get(&local.spec.name).map_or(0, |piece| piece.range.len())
            };
            let lengths = layout.members(bucket).map(here).filter(|length| *length > 0);
            let lengths: Vec<usize> = lengths.collect();
            let mut pieces = unpack(work.wait()?, &lengths, DType::F32).into_iter();
            for (local, present) in layout.members(bucket).zip(present) {
                let piece = if here(local) > 0 { pieces.next() } else { None };
                match piece {
                    Some(piece) if present => sums.accumulate(&local.spec.name, piece),
                    None if present => sums.note(&local.spec.name),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether every rank has a part.
fn fills(lengths: &[usize]) -> bool {
    lengths.iter().all(|length| *length > 0)
}

/// A tensor on a device, with its dtype.
fn moved(tensor: Tensor<1>, device: &Device) -> Tensor<1> {
    if tensor.device() == *device {
        return tensor;
    }
    let dtype = tensor.dtype();
    Tensor::from_data(tensor.into_data(), (device, dtype))
}
