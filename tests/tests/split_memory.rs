//! What ranks that split the model do not hold. The tests of this file take turns, because they count what the whole
//! process allocates.

use std::collections::HashMap;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use burn::tensor::{Device, Int, Tensor};
use burn_titan_core::model::{Context, HeadOutput, Model, ModelFamily, Parallel, Stream};
use burn_titan_kernels::inject_gradient;
use burn_titan_models::Llama3;
use burn_titan_parallel::context_parallel::{ContextParallel, Method};
use burn_titan_parallel::{Peers, TensorParallel, World};
use burn_titan_tests::counting::Counting;
use burn_titan_tests::tiny;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

static TURN: Mutex<()> = Mutex::new(());

/// One small head, so that 16,384 tokens take seconds.
fn model() -> Model {
    let family = Llama3::default();
    let sizes = json!({"n_layers": 2, "dim": 32, "n_heads": 1, "n_kv_heads": 1, "head_dim": 16,
        "ffn_dim": 96, "vocab_size": 64});
    let sizes = family.resolve("debug", sizes.as_object().expect("an object")).expect("sizes");
    family.build(&sizes, "fused").expect("a model")
}

/// Runs `rank` on so many ranks at once, which are threads; gives what the first returns.
fn on_ranks<T: Send>(ranks: usize, rank: impl Fn(World) -> T + Sync) -> T {
    let rank = &rank;
    std::thread::scope(|scope| {
        let worlds = World::local(ranks, Duration::from_secs(120)).into_iter();
        let ranks: Vec<_> = worlds.map(|world| scope.spawn(move || rank(world))).collect();
        let mut results = ranks.into_iter().map(|rank| rank.join().expect("no rank panics"));
        results.next().expect("a first rank")
    })
}

fn peers(world: &World) -> Peers {
    let all: Vec<usize> = (0..world.size()).collect();
    Peers::new(world.communicator("all", &all).expect("a group"))
}

/// Bytes of the activations of one rank of so many that share a sequence of 16,384 tokens: of all graphs, once the
/// forward is done, and the most that is alive in forward and backward.
fn activations(ranks: usize, method: Method) -> [usize; 2] {
    const SEQ: usize = 16 << 10;
    let tokens: Vec<i64> = (0..SEQ).map(|i| (i * 7 % 64) as i64).collect();
    let rows = &tiny::batch(SEQ, &tokens, &tiny::next_tokens(SEQ, &tokens));
    let (model, device) = (&model(), &Device::flex());
    let values: &HashMap<String, Tensor<1>> = &model
        .parameters()
        .into_iter()
        .map(|spec| {
            let shape = [spec.elements()];
            (spec.name, Tensor::<1>::ones(shape, device) * 0.01)
        })
        .collect();
    let barrier = &Barrier::new(ranks);
    on_ranks(ranks, |world| {
        let context = ContextParallel::new(peers(&world), method);
        let parallel = Parallel { context, ..Parallel::alone() };
        let mut value = |name: &str| values[name].clone();
        let units = model.units.iter().map(|unit| unit.with_parameters(true, &mut value));
        let units: Vec<_> = units.collect();
        barrier.wait();
        let before = ALLOCATOR.in_use();
        barrier.wait();
        if world.rank() == 0 {
            ALLOCATOR.forget_peak();
        }
        barrier.wait();
        let context = Context::shared_by(rows, HeadOutput::Loss, device, &parallel);
        let tokens = Stream::Tokens(context.tokens.clone());
        let loss = units.iter().fold(tokens, |stream, unit| unit.forward(stream, &context));
        barrier.wait();
        let graphs = (ALLOCATOR.in_use() - before) / ranks;
        barrier.wait();
        let Stream::Loss(loss) = loss else { panic!("the head gives a loss") };
        let gradients = inject_gradient(loss, Tensor::ones([1], device)).backward();
        barrier.wait();
        let most = (ALLOCATOR.peak() - before) / ranks;
        barrier.wait();
        drop(gradients);
        parallel.context.peers().check().expect("exchanges");
        [graphs, most]
    })
}

#[test]
fn a_rank_of_four_holds_a_quarter_of_a_long_sequence() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let one = activations(1, Method::Ring);
    for method in [Method::Ring, Method::AllGather] {
        let four = activations(4, method);
        let ratio = |i: usize| four[i] as f64 / one[i] as f64;
        println!("{method:?}: one rank {one:?}, of four {four:?}: {:.3} {:.3}", ratio(0), ratio(1));
        assert!(ratio(0) <= 0.3 && ratio(1) <= 0.3, "{method:?}: {one:?} {four:?}");
    }
}

const TOKENS: usize = 4096;
const DIM: usize = 16;
const WORDS: usize = 32 << 10;

/// The most bytes that all ranks of `tp` hold together while they take a loss and its gradients, beside hidden states
/// and weight.
fn loss_in_parallel(ranks: usize) -> usize {
    let device = &Device::flex();
    let targets: Vec<i32> = (0..TOKENS).map(|i| (i * 8191 % WORDS) as i32).collect();
    let targets = &targets;
    let barrier = &Barrier::new(ranks);
    on_ranks(ranks, |world| {
        let tensor = TensorParallel::new(peers(&world), true, true, WORDS);
        let leaf =
            |shape: [usize; 2]| (Tensor::<2>::ones(shape, device) * 0.01).autodiff().require_grad();
        let own = tensor.shares(TOKENS)[world.rank()];
        let (hidden, weight) = (leaf([own, DIM]), leaf([DIM, tensor.words().len()]));
        let targets = Tensor::<1, Int>::from_data(targets.as_slice(), device);
        barrier.wait();
        let before = ALLOCATOR.in_use();
        barrier.wait();
        if world.rank() == 0 {
            ALLOCATOR.forget_peak();
        }
        barrier.wait();
        let loss = tensor.loss(hidden.clone().unsqueeze_dim(0), weight.clone(), targets);
        let gradients = loss.backward();
        barrier.wait();
        let most = ALLOCATOR.peak() - before;
        barrier.wait();
        assert!(hidden.grad(&gradients).is_some() && weight.grad(&gradients).is_some());
        tensor.peers().check().expect("exchanges");
        most
    })
}

#[test]
fn no_rank_of_a_parallel_loss_holds_its_logits() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let all = 4 * TOKENS * WORDS;
    for ranks in [2, 4] {
        let held = loss_in_parallel(ranks);
        println!("{ranks} ranks: {held} bytes of {all}: {:.3}", held as f64 / all as f64);
        // All of them together hold less than one of them would with the logits of its words.
        assert!(held < all / ranks, "{ranks} ranks hold {held} bytes, the logits are {all}");
    }
}
