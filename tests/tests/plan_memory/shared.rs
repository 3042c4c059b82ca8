//! Units whose work ranks share hold what they say.

use std::collections::HashMap;
use std::sync::{Barrier, PoisonError};
use std::time::Duration;

use burn::tensor::{DType, Device};
use burn_titan_core::data::Batch;
use burn_titan_core::model::{
    Context, ExpertRank, HeadOutput, Model, Parallel, Sharing, TensorRank, Workload,
};
use burn_titan_parallel::context_parallel::{ContextParallel, Method, SequenceShards};
use burn_titan_parallel::expert_parallel::ExpertParallel;
use burn_titan_parallel::{Peers, TensorParallel, World};
use burn_titan_tests::tiny;

use super::TURN;
use super::units::{MEASURED, SMALL, SORTED, Together, measured, model, said, sizes};

/// How two or four ranks share a unit's work.
pub(super) struct Shared {
    pub(super) name: &'static str,
    pub(super) tensor: usize,
    pub(super) context: usize,
    pub(super) sequence: bool,
    pub(super) loss: bool,
    pub(super) chunks: usize,
    pub(super) method: Method,
    /// Ranks that have all experts together: all of them, or 1.
    pub(super) experts: usize,
}

pub(super) const PLAIN: Shared = Shared {
    name: "",
    tensor: 1,
    context: 1,
    sequence: true,
    loss: true,
    chunks: 1,
    method: Method::Ring,
    experts: 1,
};

const SHARED: [Shared; 9] = [
    Shared { name: "tp 2", tensor: 2, ..PLAIN },
    Shared { name: "tp 2, no sp", tensor: 2, sequence: false, ..PLAIN },
    Shared { name: "tp 2, no loss", tensor: 2, loss: false, ..PLAIN },
    Shared { name: "tp 2, neither", tensor: 2, sequence: false, loss: false, ..PLAIN },
    Shared { name: "tp 2, chunks", tensor: 2, chunks: 4, ..PLAIN },
    Shared { name: "tp 2, chunks, no sp", tensor: 2, chunks: 4, sequence: false, ..PLAIN },
    Shared { name: "cp 2", context: 2, ..PLAIN },
    Shared { name: "cp 2, gathered", context: 2, method: Method::AllGather, ..PLAIN },
    Shared { name: "cp 4", context: 4, ..PLAIN },
];

impl Shared {
    fn workload(&self, batch: usize, seq: usize, compute: DType, model: &Model) -> Workload {
        let sequences = (self.context > 1)
            .then(|| SequenceShards::new(seq, self.context).expect("a long sequence"));
        let tensor =
            TensorRank { rank: 0, ranks: self.tensor, sequence: self.sequence && self.tensor > 1 };
        Workload {
            batch,
            seq: seq / self.context,
            compute,
            native: true,
            sharing: Sharing {
                tensor,
                loss: self.loss,
                vocabulary: model.vocab_size,
                chunks: self.chunks,
                sequences,
                gathers_keys: self.method == Method::AllGather,
                expert_ranks: self.experts,
            },
        }
    }

    /// What each unit takes as all ranks run it at once: of one of them.
    fn measured(&self, model: &Model, workload: &Workload, batch: &Batch) -> Vec<[usize; 5]> {
        let ranks = self.ranks();
        let barrier = &Barrier::new(ranks);
        let rank = move |world: World| {
            let all: Vec<usize> = (0..ranks).collect();
            let peers = |several: bool| match several {
                true => Peers::new(world.communicator("all", &all).expect("a group")),
                false => Peers::alone(),
            };
            let Sharing { tensor, loss, vocabulary, chunks, .. } = workload.sharing;
            let peers = [self.tensor, self.context, self.experts].map(|ranks| peers(ranks > 1));
            let [tensor_peers, context_peers, expert_peers] = peers;
            let rank = TensorRank { rank: tensor_peers.rank(), ..tensor };
            let parallel = Parallel {
                tensor: TensorParallel::new(tensor_peers, tensor.sequence, loss, vocabulary),
                chunks,
                context: ContextParallel::new(context_peers, self.method),
                expert: ExpertParallel::new(expert_peers),
            };
            let device = Device::flex();
            let context = Context::shared_by(batch, HeadOutput::Loss, &device, &parallel);
            let shapes = self.shapes(model, rank, world.rank());
            let dim = shapes["norm.weight"][0];
            let together = Together { ranks, barrier: Some(barrier), first: world.rank() == 0 };
            let units = model.units.iter().map(|unit| unit.reshaped(&|name| shapes[name].clone()));
            let found = units.map(|unit| measured(&*unit, &context, workload, dim, together));
            let found = found.collect::<Vec<_>>();
            parallel.tensor.peers().check().expect("exchanges of tp");
            parallel.context.peers().check().expect("exchanges of cp");
            parallel.expert.peers().check().expect("exchanges of ep");
            found
        };
        std::thread::scope(|scope| {
            let worlds = World::local(ranks, Duration::from_secs(60)).into_iter();
            let ranks: Vec<_> = worlds.map(|world| scope.spawn(move || rank(world))).collect();
            let mut found = ranks.into_iter().map(|rank| rank.join().expect("no rank panics"));
            found.next().expect("a first rank")
        })
    }

    fn ranks(&self) -> usize {
        (self.tensor * self.context).max(self.experts)
    }

    /// The shapes of what a rank has of the parameters.
    fn shapes(
        &self,
        model: &Model,
        tensor: TensorRank,
        rank: usize,
    ) -> HashMap<String, Vec<usize>> {
        let expert = match self.experts {
            1 => ExpertRank::ALONE,
            ranks => ExpertRank { rank, ranks, shard: 0, shards: 1 },
        };
        let cuts = model.cuts(tensor, expert).expect("a plan").into_iter().map(|cut| cut.shape);
        model.parameters().into_iter().map(|spec| spec.name).zip(cuts).collect()
    }

    /// What the units of a model take and what they say, where these are too far apart. The first block is left out.
    pub(super) fn compare(
        &self,
        model: &Model,
        [batch, seq]: [usize; 2],
        compute: DType,
    ) -> Vec<String> {
        let workload = self.workload(batch, seq, compute, model);
        let tokens: Vec<i64> =
            (0..batch * seq).map(|i| (i * 7 % model.vocab_size) as i64).collect();
        let rows = tiny::batch(seq, &tokens, &tiny::next_tokens(seq, &tokens));
        // Ranks that are not all at their peak at one time hold less together.
        let mut found = self.measured(model, &workload, &rows);
        let again = self.measured(model, &workload, &rows);
        for (most, again) in found.iter_mut().zip(again) {
            *most = std::array::from_fn(|i| most[i].max(again[i]));
        }
        let shapes = self.shapes(model, workload.sharing.tensor, 0);
        let mut wrong = Vec::new();
        for (number, unit) in model.units.iter().enumerate() {
            if number == 1 {
                continue;
            }
            let counted = said(&*unit.reshaped(&|name| shapes[name].clone()), &workload);
            for (i, what) in MEASURED.into_iter().enumerate() {
                let (found, said) = (found[number][i], counted[i]);
                let ratio = found as f64 / said.max(1) as f64;
                let line = format!(
                    "{}, {compute:?}: {what} of {}: {found} bytes, said {said}: {ratio:.3}",
                    self.name,
                    unit.name(),
                );
                println!("{line}");
                let small = if unit.name() == "head" && i != 1 { SORTED } else { SMALL };
                // What ranks hold for a moment, they hold one after the other, if there is nothing to wait for.
                let least = if i == 1 || i == 4 { said } else { said / 2 };
                if found > said + said / 10 + small || found + SMALL < least {
                    wrong.push(line);
                }
            }
        }
        wrong
    }
}

#[test]
fn units_that_ranks_share_hold_what_they_say() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let sizes = sizes([128, 4, 2, 32, 384, 1024]);
    let mut wrong = Vec::new();
    for shared in &SHARED {
        for (compute, tied) in [(DType::F32, false), (DType::BF16, true)] {
            wrong.extend(shared.compare(&model(&sizes, tied), [4, 512], compute));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
