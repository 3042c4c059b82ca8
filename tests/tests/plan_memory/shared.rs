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
struct Shared {
    name: &'static str,
    tensor: usize,
    context: usize,
    sequence: bool,
    loss: bool,
    chunks: usize,
    method: Method,
}

const PLAIN: Shared = Shared {
    name: "",
    tensor: 1,
    context: 1,
    sequence: true,
    loss: true,
    chunks: 1,
    method: Method::Ring,
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
                expert_ranks: 1,
            },
        }
    }

    /// What each unit takes as all ranks run it at once: of one of them.
    fn measured(&self, model: &Model, workload: &Workload, batch: &Batch) -> Vec<[usize; 5]> {
        let ranks = self.tensor * self.context;
        let barrier = &Barrier::new(ranks);
        let rank = move |world: World| {
            let all: Vec<usize> = (0..ranks).collect();
            let peers = |several: bool| match several {
                true => Peers::new(world.communicator("all", &all).expect("a group")),
                false => Peers::alone(),
            };
            let Sharing { tensor, loss, vocabulary, chunks, .. } = workload.sharing;
            let peers = [peers(self.tensor > 1), peers(self.context > 1)];
            let [tensor_peers, context_peers] = peers;
            let rank = TensorRank { rank: tensor_peers.rank(), ..tensor };
            let parallel = Parallel {
                tensor: TensorParallel::new(tensor_peers, tensor.sequence, loss, vocabulary),
                chunks,
                context: ContextParallel::new(context_peers, self.method),
                expert: ExpertParallel::alone(),
            };
            let device = Device::flex();
            let context = Context::shared_by(batch, HeadOutput::Loss, &device, &parallel);
            let names = model.parameters().into_iter().map(|spec| spec.name);
            let cuts = model
                .cuts(rank, ExpertRank::ALONE)
                .expect("a plan")
                .into_iter()
                .map(|cut| cut.shape);
            let shapes: HashMap<String, Vec<usize>> = names.zip(cuts).collect();
            let dim = shapes["norm.weight"][0];
            let together = Together { ranks, barrier: Some(barrier), first: world.rank() == 0 };
            let units = model.units.iter().map(|unit| unit.reshaped(&|name| shapes[name].clone()));
            let found = units.map(|unit| measured(&*unit, &context, workload, dim, together));
            let found = found.collect::<Vec<_>>();
            parallel.tensor.peers().check().expect("exchanges of tp");
            parallel.context.peers().check().expect("exchanges of cp");
            found
        };
        std::thread::scope(|scope| {
            let worlds = World::local(ranks, Duration::from_secs(60)).into_iter();
            let ranks: Vec<_> = worlds.map(|world| scope.spawn(move || rank(world))).collect();
            let mut found = ranks.into_iter().map(|rank| rank.join().expect("no rank panics"));
            found.next().expect("a first rank")
        })
    }
}

#[test]
fn units_that_ranks_share_hold_what_they_say() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (sizes, batch, seq) = (sizes([128, 4, 2, 32, 384, 1024]), 4, 512);
    let mut wrong = Vec::new();
    for shared in &SHARED {
        for (compute, tied) in [(DType::F32, false), (DType::BF16, true)] {
            let model = model(&sizes, tied);
            let workload = shared.workload(batch, seq, compute, &model);
            let tokens: Vec<i64> =
                (0..batch * seq).map(|i| (i * 7 % model.vocab_size) as i64).collect();
            let rows = tiny::batch(seq, &tokens, &tiny::next_tokens(seq, &tokens));
            // Ranks that are not all at their peak at one time hold less together.
            let mut found = shared.measured(&model, &workload, &rows);
            let again = shared.measured(&model, &workload, &rows);
            for (most, again) in found.iter_mut().zip(again) {
                *most = std::array::from_fn(|i| most[i].max(again[i]));
            }
            let cuts = model.cuts(workload.sharing.tensor, ExpertRank::ALONE).expect("a plan");
            let names = model.parameters().into_iter().map(|spec| spec.name);
            let shapes: HashMap<String, Vec<usize>> =
                names.zip(cuts.into_iter().map(|cut| cut.shape)).collect();
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
                        shared.name,
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
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
