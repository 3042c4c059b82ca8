use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor};
use burn_titan_kernels::cross_entropy::{CrossEntropyOps, IGNORE, linear_cross_entropy, reference};

use crate::support::{check, check_half, devices, noise, values};

/// Targets for `tokens` tokens, one in five of which does not count.
pub fn targets(tokens: usize, vocab: usize, device: &Device) -> Tensor<1, Int> {
    let target = |i: i64| if i % 5 == 3 { IGNORE } else { (i * 7919) % vocab as i64 };
    let targets: Vec<i64> = (0..tokens as i64).map(target).collect();
    Tensor::from_data(targets.as_slice(), device)
}

/// The loss of flat inputs with at most `budget` logits at once.
fn chunked(
    [hidden, weight]: [Tensor<1>; 2],
    [tokens, dim, vocab]: [usize; 3],
    budget: usize,
) -> Tensor<1> {
    let targets = targets(tokens, vocab, &hidden.device());
    Tensor::from_dispatch(<Dispatch as CrossEntropyOps>::fused_linear_cross_entropy(
        hidden.reshape([tokens, dim]).into_dispatch(),
        weight.reshape([dim, vocab]).into_dispatch(),
        targets.into_dispatch(),
        budget,
    ))
}

/// The loss by the reference.
pub fn plain([hidden, weight]: [Tensor<1>; 2], [tokens, dim, vocab]: [usize; 3]) -> Tensor<1> {
    let targets = targets(tokens, vocab, &hidden.device());
    let (hidden, weight) = (hidden.reshape([tokens, dim]), weight.reshape([dim, vocab]));
    reference::linear_cross_entropy(hidden, weight, targets)
}

#[test]
fn equals_the_reference_at_odd_sizes() {
    for sizes in [[1, 1, 1], [3, 5, 7], [67, 24, 331], [600, 16, 33], [1030, 3, 12]] {
        let [tokens, dim, vocab] = sizes;
        check(
            &format!("{sizes:?}"),
            [noise([tokens * dim], 0) * 3.0, noise([dim * vocab], 1)],
            |inputs| chunked(inputs, sizes, 1 << 24),
            |inputs| plain(inputs, sizes),
            2e-6,
        );
    }
}

/// Budgets so small that the vocabulary is cut, with one and with several rows of chunks.
#[test]
fn equals_the_reference_over_chunks_of_the_vocabulary() {
    for (sizes, budget) in
        [([67, 24, 331], 4096), ([100, 9, 1000], 8192), ([3, 5, 200], 1), ([90, 8, 128], 11_519)]
    {
        let [tokens, dim, vocab] = sizes;
        check(
            &format!("{sizes:?} by {budget}"),
            [noise([tokens * dim], 0) * 3.0, noise([dim * vocab], 1)],
            |inputs| chunked(inputs, sizes, budget),
            |inputs| plain(inputs, sizes),
            2e-6,
        );
    }
}

/// With `u` the unit round-off and `m` the largest logit, a rounded logit is off by at most `m u`. So a
/// token's loss, which is above 1 on average, is off by at most `2 m u`, and a probability by a share of
/// `2 m u`. The gradients follow: a row's probabilities sum to 1, and the largest gradients are about as
/// large as the inputs that they sum. They are rounded themselves up to four times: as gradients of
/// logits, as products, at the end of the sum, and when scaled.
#[test]
fn half_precision_rounds_logits_and_gradients() {
    let sizes = [67, 24, 331];
    let (hidden, weight) = (noise([67 * 24], 0), noise([24 * 331], 1));
    let logits = hidden.clone().reshape([67, 24]).matmul(weight.clone().reshape([24, 331]));
    let m = f64::from(logits.abs().max().into_scalar::<f32>());
    for budget in [1 << 24, 4096] {
        check_half(
            &format!("by {budget}"),
            [hidden.clone(), weight.clone()],
            |inputs| chunked(inputs, sizes, budget),
            |inputs| plain(inputs, sizes),
            2.0 * m + 4.0,
        );
    }
}

/// A tied embedding comes transposed, and hidden states may be part of a longer sequence.
#[test]
fn inputs_need_not_be_contiguous() {
    let [tokens, dim, vocab] = [33, 6, 200];
    for budget in [1 << 24, 2048] {
        let loss = |[hidden, weight]: [Tensor<1>; 2], fused: bool| {
            let hidden = hidden.reshape([dim, tokens + 2]).transpose().narrow(0, 1, tokens);
            let weight = weight.reshape([vocab, dim]).transpose();
            if !fused {
                let targets = targets(tokens, vocab, &hidden.device());
                return reference::linear_cross_entropy(hidden, weight, targets);
            }
            let targets = targets(tokens, vocab, &hidden.device());
            Tensor::<1>::from_dispatch(<Dispatch as CrossEntropyOps>::fused_linear_cross_entropy(
                hidden.into_dispatch(),
                weight.into_dispatch(),
                targets.into_dispatch(),
                budget,
            ))
        };
        check(
            &format!("transposed by {budget}"),
            [noise([(tokens + 2) * dim], 0) * 3.0, noise([dim * vocab], 1)],
            |inputs| loss(inputs, true),
            |inputs| loss(inputs, false),
            2e-6,
        );
    }
}

#[test]
fn nothing_counts_or_nothing_is_there() {
    for device in crate::support::devices() {
        for tokens in [0, 3] {
            let hidden = Tensor::<2>::ones([tokens, 4], &device).autodiff().require_grad();
            let weight = Tensor::<2>::ones([4, 5], &device).autodiff().require_grad();
            let targets = vec![IGNORE; tokens];
            let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &hidden.device());
            let loss = linear_cross_entropy(hidden.clone(), weight.clone(), targets);
            let gradients = loss.backward();
            assert_eq!(values(loss), [0.0]);
            assert_eq!(values(hidden.grad(&gradients).unwrap()), vec![0.0; tokens * 4]);
            assert_eq!(values(weight.grad(&gradients).unwrap()), [0.0; 20]);
        }
    }
}

#[test]
fn threads_change_no_bit_on_flex() {
    let sizes = [300, 24, 1111];
    let run = |threads: usize, budget: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let inputs = [noise([300 * 24], 0) * 3.0, noise([24 * 1111], 1)];
            let inputs = inputs.map(|x| x.autodiff().require_grad());
            let loss = chunked(inputs.clone(), sizes, budget);
            let gradients = (loss.clone() * 0.3).backward();
            let [hidden, weight] = inputs.map(|x| values(x.grad(&gradients).unwrap()));
            (values(loss), hidden, weight)
        })
    };
    for budget in [1 << 24, 30_000] {
        let one = run(1, budget);
        assert!(run(2, budget) == one, "2 threads by {budget}");
        assert!(run(3, budget) == one, "3 threads by {budget}");
    }
}

#[test]
fn the_loss_is_the_same_without_gradients() {
    let sizes = [67, 24, 331];
    for device in crate::support::devices() {
        for budget in [1 << 24, 4096] {
            let inputs = [noise([67 * 24], 0), noise([24 * 331], 1)].map(|x| x.to_device(&device));
            let alone = chunked(inputs.clone(), sizes, budget);
            let tracked = chunked(inputs.map(|x| x.autodiff().require_grad()), sizes, budget);
            assert_eq!(tracked.dtype(), DType::F32);
            assert_eq!(values(alone), values(tracked));
        }
    }
}

/// A broken weight is seen in the loss, though its column is nobody's target and in a chunk of its own.
#[test]
fn a_broken_column_is_not_hidden() {
    let sizes = [4, 3, 1000];
    for device in devices() {
        for (column, budget) in [(2, 1 << 24), (2, 1024), (700, 1024), (999, 1024)] {
            let mut weight = vec![0.1_f32; 3 * 1000];
            weight[column] = f32::NAN;
            let weight = Tensor::<1>::from_floats(weight.as_slice(), &device);
            let hidden = noise([12], 5).to_device(&device);
            let loss = values(chunked([hidden, weight], sizes, budget))[0];
            assert!(loss.is_nan(), "{device:?}, column {column} by {budget}: {loss}");
        }
    }
}
