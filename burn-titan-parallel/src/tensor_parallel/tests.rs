//! A small model on ranks that are threads, against the same model on one.

use std::time::Duration;

use burn::tensor::{DType, Device, Gradients, Int, Tensor};
use burn_titan_kernels::{embedding, linear_cross_entropy};

use super::*;
use crate::communicator::CommError;
use crate::world::World;

const VOCABULARY: usize = 331;
const DIM: usize = 8;
/// Of the feed-forward; divides by no number of ranks.
const MIDDLE: usize = 13;

/// A micro-batch, and what it is computed in.
#[derive(Debug, Clone, Copy)]
struct Batch {
    size: usize,
    seq: usize,
    dtype: DType,
    /// Of the feed-forward, in which exchanges are hidden; one by one without.
    chunks: Option<usize>,
}

/// The embedding, the head, a scale on every token (as a norm has), and a feed-forward's two matrices.
type Weights = [Tensor<2>; 5];

/// How each of the weights is cut: by its dim 0 or 1, or not at all.
const CUTS: [Option<usize>; 5] = [Some(0), Some(1), None, Some(1), Some(0)];

/// What a rank has of the loss, the gradients of its weights, and all logits.
struct Results {
    loss: f32,
    gradients: Weights,
    logits: Tensor<3>,
}

/// Repeatable numbers in `[-1, 1)`, from a counter-based hash.
fn noise<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let number = |i: u64| {
        let mut x = i.wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 31;
        x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^= x >> 32;
        (x >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let numbers: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(number).collect();
    Tensor::<1>::from_floats(numbers.as_slice(), &Device::flex()).reshape(shape)
}

impl Batch {
    fn weights(self) -> Weights {
        let shapes = [[VOCABULARY, DIM], [DIM, VOCABULARY], [1, DIM], [DIM, MIDDLE], [MIDDLE, DIM]];
        let mut seed = 0;
        shapes.map(|shape| {
            seed += 1;
            noise(shape, seed).cast(self.dtype)
        })
    }

    fn words(self, factor: i64) -> Vec<i64> {
        (0..(self.size * self.seq) as i64).map(|i| (i * factor + 5) % VOCABULARY as i64).collect()
    }

    fn tokens(self, device: &Device) -> Tensor<2, Int> {
        Tensor::<1, Int>::from_data(self.words(7919).as_slice(), device)
            .reshape([self.size, self.seq])
    }

    /// One in five does not count.
    fn targets(self, device: &Device) -> Tensor<1, Int> {
        let mut words = self.words(104_729);
        words.iter_mut().skip(3).step_by(5).for_each(|word| *word = -1);
        Tensor::from_data(words.as_slice(), device)
    }
}

/// The part of the weights that a rank has.
fn cut(weights: Weights, rank: usize, ranks: usize) -> Weights {
    let mut cuts = CUTS.into_iter();
    weights.map(|weight| match cuts.next().flatten() {
        Some(dim) => {
            let range = shard_range(weight.dims()[dim], ranks, rank);
            weight.narrow(dim, range.start, range.len())
        }
        None => weight,
    })
}

/// The model: on a rank of `tp`, or without.
fn run(tp: Option<&TensorParallel>, batch: Batch) -> Results {
    let weights = match tp {
        Some(tp) => cut(batch.weights(), tp.peers().rank(), tp.peers().size()),
        None => batch.weights(),
    };
    let leaves = weights.map(|weight| weight.autodiff().require_grad());
    let [embeddings, head, scale, up, down] = leaves.clone();
    let device = embeddings.device();
    let (tokens, targets) = (batch.tokens(&device), batch.targets(&device));
    let sizes = [batch.size, batch.seq];
    let mut x = match tp {
        Some(tp) => tp.embed(embeddings, tokens),
        None => embedding(embeddings, tokens),
    };
    for _ in 0..2 {
        let normed = x.clone() * scale.clone().unsqueeze();
        let feed_forward = |h: Tensor<3>| {
            let middle = h.matmul(up.clone().unsqueeze()).tanh();
            middle.matmul(down.clone().unsqueeze())
        };
        x = x + match (tp, batch.chunks) {
            (None, _) => feed_forward(normed),
            (Some(tp), None) => tp.leave(feed_forward(tp.enter(normed, sizes))),
            (Some(tp), Some(chunks)) => tp.by_chunks(normed, sizes, chunks, feed_forward),
        };
    }
    let logits = match tp {
        Some(tp) => tp.logits(x.clone(), head.clone(), sizes),
        None => x.clone().matmul(head.clone().unsqueeze()).inner(),
    };
    let loss = match tp {
        Some(tp) => tp.loss(x, head, targets),
        None => linear_cross_entropy(x.flatten(0, 1), head, targets),
    };
    let gradients: Gradients = (loss.clone() * 0.25).backward();
    let gradients = leaves.map(|leaf| leaf.grad(&gradients).unwrap());
    Results { loss: loss.into_scalar(), gradients, logits }
}

/// What all ranks of a world return.
fn on_ranks<T: Send>(
    [sequence, loss]: [bool; 2],
    size: usize,
    f: impl Fn(&World, TensorParallel) -> T + Sync,
) -> Vec<T> {
    let members: Vec<usize> = (0..size).collect();
    let (f, members) = (&f, members.as_slice());
    std::thread::scope(|scope| {
        let rank = |world: World| {
            scope.spawn(move || {
                let peers = Peers::new(world.communicator("tp", members).unwrap());
                f(&world, TensorParallel::new(peers, sequence, loss, VOCABULARY))
            })
        };
        let worlds = World::local(size, Duration::from_secs(60));
        let ranks: Vec<_> = worlds.into_iter().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn results(ways: [bool; 2], size: usize, batch: Batch) -> Vec<Results> {
    on_ranks(ways, size, |_, tp| {
        let results = run(Some(&tp), batch);
        tp.peers().check().unwrap();
        results
    })
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.to_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}

fn bits<const D: usize>(x: &Tensor<D>) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// The largest difference, relative to the largest value.
fn distance<const D: usize>(got: &Tensor<D>, want: &Tensor<D>) -> f32 {
    assert_eq!((got.dims(), got.dtype()), (want.dims(), want.dtype()));
    let (got, want) = (values(got), values(want));
    let scale = want.iter().fold(0.0_f32, |scale, x| scale.max(x.abs()));
    let differences = got.iter().zip(&want).map(|(got, want)| (got - want).abs());
    assert!(differences.clone().all(f32::is_finite) && scale > 0.0);
    differences.fold(0.0, f32::max) / scale
}

/// The gradients of whole weights out of those that the ranks have.
fn joined(ranks: &[Results], sequence: bool) -> Vec<Tensor<2>> {
    let join = |(weight, cut): (usize, Option<usize>)| {
        let parts = || ranks.iter().map(|rank| rank.gradients[weight].clone());
        match cut {
            Some(dim) => Tensor::cat(parts().collect(), dim),
            None if sequence => parts().reduce(|a, b| a + b).unwrap(),
            None => {
                assert!(parts().all(|part| bits(&part) == bits(&ranks[0].gradients[weight])));
                ranks[0].gradients[weight].clone()
            }
        }
    };
    CUTS.into_iter().enumerate().map(join).collect()
}

fn assert_equals_one_rank(batch: Batch, sizes: &[usize], bound: f32) {
    let want = run(None, batch);
    for size in sizes {
        for ways @ [sequence, _] in [[false, false], [false, true], [true, false], [true, true]] {
            let name = format!("{batch:?} on {size} ranks, {ways:?}");
            let got = results(ways, *size, batch);
            for rank in &got {
                assert_eq!(rank.loss.to_bits(), got[0].loss.to_bits(), "{name}");
                let logits = distance(&rank.logits, &want.logits);
                assert!(logits <= bound, "{name}: logits differ by {logits:e}");
            }
            let loss = (got[0].loss - want.loss).abs() / want.loss;
            assert!(loss <= bound, "{name}: the loss differs by {loss:e}");
            let gradients = joined(&got, sequence && *size > 1);
            for (i, (got, want)) in gradients.iter().zip(&want.gradients).enumerate() {
                let gradient = distance(got, want);
                assert!(gradient <= bound, "{name}: gradient {i} differs by {gradient:e}");
            }
        }
    }
}

#[test]
fn ranks_equal_one_rank() {
    // The last has fewer tokens than ranks.
    for [size, seq] in [[3, 43], [1, 7], [1, 3]] {
        assert_equals_one_rank(
            Batch { size, seq, dtype: DType::F32, chunks: None },
            &[2, 3, 4],
            1e-5,
        );
    }
}

#[test]
fn chunks_equal_the_whole() {
    for ([size, seq], chunks) in [([3, 43], 2), ([3, 43], 5), ([1, 7], 3), ([1, 3], 4)] {
        let whole = Batch { size, seq, dtype: DType::F32, chunks: None };
        let batch = Batch { chunks: Some(chunks), ..whole };
        for ranks in 1..=4 {
            for ways in [[false, true], [true, true]] {
                let name = format!("{batch:?} on {ranks} ranks, {ways:?}");
                let want = results(ways, ranks, whole);
                let [got, again] = [(), ()].map(|()| results(ways, ranks, batch));
                let loss = (got[0].loss - want[0].loss).abs() / want[0].loss;
                assert!(loss <= 1e-6, "{name}: the loss differs by {loss:e}");
                let [got, again, want] =
                    [got, again, want].map(|all| joined(&all, ways[0] && ranks > 1));
                for (i, want) in want.iter().enumerate() {
                    let gradient = distance(&got[i], want);
                    assert!(gradient <= 1e-6, "{name}: gradient {i} differs by {gradient:e}");
                    assert_eq!(bits(&got[i]), bits(&again[i]), "{name}: from run to run");
                }
            }
        }
    }
}

/// Rounded anew in every sum over ranks, by 2^-8 at most: some of them add up in a gradient.
#[test]
fn ranks_are_near_one_rank_in_half_precision() {
    assert_equals_one_rank(
        Batch { size: 2, seq: 19, dtype: DType::BF16, chunks: None },
        &[2, 3],
        0.03,
    );
}

#[test]
fn alone_is_the_plain_model_bit_by_bit() {
    for dtype in [DType::F32, DType::BF16] {
        let batch = Batch { size: 3, seq: 43, dtype, chunks: None };
        let want = run(None, batch);
        for ways in [[false, false], [true, true]] {
            let got = &results(ways, 1, batch)[0];
            assert_eq!(got.loss.to_bits(), want.loss.to_bits());
            assert_eq!(bits(&got.logits), bits(&want.logits));
            for (got, want) in got.gradients.iter().zip(&want.gradients) {
                assert_eq!(bits(got), bits(want));
            }
        }
    }
}

#[test]
fn bitwise_from_run_to_run() {
    let batch = Batch { size: 3, seq: 43, dtype: DType::F32, chunks: None };
    for ways in [[false, true], [true, false], [true, true]] {
        let [one, two] = [(), ()].map(|()| results(ways, 3, batch));
        for (one, two) in one.iter().zip(&two) {
            assert_eq!(one.loss.to_bits(), two.loss.to_bits());
            assert!(one.gradients.iter().zip(&two.gradients).all(|(a, b)| bits(a) == bits(b)));
        }
    }
}

#[test]
fn a_cut_stream_is_this_ranks_tokens() {
    let batch = Batch { size: 1, seq: 7, dtype: DType::F32, chunks: None };
    let want = embedding(batch.weights()[0].clone(), batch.tokens(&Device::flex()));
    let streams = on_ranks([true, true], 4, |_, tp| {
        assert_eq!((tp.shares(7), tp.cuts_stream()), (vec![2, 2, 2, 1], true));
        let rank = tp.peers().rank();
        let [weight, ..] = cut(batch.weights(), rank, 4);
        tp.embed(weight, batch.tokens(&Device::flex()))
    });
    assert_eq!(streams[3].dims(), [1, 1, DIM]);
    assert_eq!(bits(&Tensor::cat(streams, 1)), bits(&want));
}

/// A rank goes away in the middle of a forward.
#[test]
fn a_lost_peer_is_an_error_and_no_panic() {
    let batch = Batch { size: 3, seq: 43, dtype: DType::F32, chunks: None };
    for ways in [[false, true], [true, false], [true, true]] {
        let errors = on_ranks(ways, 3, |world, tp| {
            if tp.peers().rank() == 1 {
                let [weight, ..] = cut(batch.weights(), 1, 3);
                tp.embed(weight, batch.tokens(&Device::flex()));
                world.abort("it had enough");
                return None;
            }
            run(Some(&tp), batch);
            let error = tp.peers().check().err();
            // As a run does, for those that wait for this one.
            world.abort("a peer is lost");
            error
        });
        for rank in [0, 2] {
            assert!(matches!(errors[rank], Some(CommError::Lost { .. })), "{:?}", errors[rank]);
        }
    }
}
