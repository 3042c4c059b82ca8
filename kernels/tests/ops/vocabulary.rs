use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor};
use burn_titan_kernels::cross_entropy::{
    CHUNK_ELEMENTS, IGNORE, VocabularyOps, VocabularyStatistics, linear_cross_entropy,
    vocabulary_gradients, vocabulary_statistics,
};
use burn_titan_kernels::differentiable;

use crate::cross_entropy::{plain, targets};
use crate::support::{check, check_half, devices, noise, values};

fn statistics(
    [hidden, weight]: [Tensor<2>; 2],
    targets: Tensor<1, Int>,
    first: usize,
    budget: usize,
) -> VocabularyStatistics {
    let [hidden, weight] = [hidden, weight].map(Tensor::into_dispatch);
    let (log_sum_exp, target_logit) = <Dispatch as VocabularyOps>::fused_vocabulary_statistics(
        hidden,
        weight,
        targets.into_dispatch(),
        first,
        budget,
    );
    VocabularyStatistics {
        log_sum_exp: Tensor::from_dispatch(log_sum_exp),
        target_logit: Tensor::from_dispatch(target_logit),
    }
}

/// The summed loss, as ranks that have so many words each take it: each with at most `budget` logits at once.
fn in_slices(
    [hidden, weight]: [Tensor<1>; 2],
    [tokens, dim, vocab]: [usize; 3],
    slices: &[usize],
    budget: usize,
) -> Tensor<1> {
    assert_eq!(slices.iter().sum::<usize>(), vocab);
    let inputs = [hidden.reshape([tokens, dim]), weight.reshape([dim, vocab])];
    let firsts: Vec<usize> = (0..slices.len()).map(|i| slices[..i].iter().sum()).collect();
    let slices: Vec<_> = firsts.into_iter().zip(slices.to_vec()).collect();
    differentiable(inputs, |[hidden, weight]| {
        let targets = targets(tokens, vocab, &hidden.device());
        let parts = slices.iter().map(|(first, length)| {
            let part = weight.clone().narrow(1, *first, *length);
            statistics([hidden.clone(), part], targets.clone(), *first, budget)
        });
        let (sums, logits): (Vec<_>, Vec<_>) =
            parts.map(|part| (part.log_sum_exp, part.target_logit)).unzip();
        let sums = Tensor::<1>::stack::<2>(sums, 0);
        let top = sums.clone().max_dim(0);
        let log_sum_exp = ((sums - top.clone()).exp().sum_dim(0).log() + top).squeeze_dim::<1>(0);
        let target_logit = Tensor::<1>::stack::<2>(logits, 0).sum_dim(0).squeeze_dim::<1>(0);
        let ignored = targets.clone().lower_elem(0);
        let loss = (log_sum_exp.clone() - target_logit).mask_fill(ignored, 0.0).sum();
        let backward = move |gradient: Tensor<1>| {
            let mut d_hidden = Vec::new();
            let mut d_weight = Vec::new();
            for (first, length) in slices {
                let part = weight.clone().narrow(1, first, length);
                let (d_rows, d_part) = <Dispatch as VocabularyOps>::fused_vocabulary_gradients(
                    hidden.clone().into_dispatch(),
                    part.into_dispatch(),
                    targets.clone().into_dispatch(),
                    log_sum_exp.clone().into_dispatch(),
                    gradient.clone().into_dispatch(),
                    first,
                    budget,
                );
                d_hidden.push(Tensor::<2>::from_dispatch(d_rows).cast(DType::F32));
                d_weight.push(Tensor::<2>::from_dispatch(d_part));
            }
            let d_hidden = Tensor::stack::<3>(d_hidden, 0).sum_dim(0).squeeze_dim::<2>(0);
            [d_hidden.cast(hidden.dtype()), Tensor::cat(d_weight, 1)]
        };
        (loss, Box::new(backward))
    })
}

#[test]
fn slices_equal_the_reference() {
    for (sizes, slices, budget) in [
        ([67, 24, 331], vec![166, 165], CHUNK_ELEMENTS),
        ([67, 24, 331], vec![166, 165], 4096),
        ([129, 9, 331], vec![83, 83, 83, 82], CHUNK_ELEMENTS),
        ([100, 9, 1000], vec![500, 500], 8192),
        ([600, 16, 33], vec![33], CHUNK_ELEMENTS),
        ([3, 5, 2], vec![1, 1], 1),
    ] {
        let [tokens, dim, vocab] = sizes;
        check(
            &format!("{sizes:?} in {slices:?} by {budget}"),
            [noise([tokens * dim], 0) * 3.0, noise([dim * vocab], 1)],
            |inputs| in_slices(inputs, sizes, &slices, budget),
            |inputs| plain(inputs, sizes),
            2e-6,
        );
    }
}

/// Rounded as in the test of the whole vocabulary, and the gradient of hidden states once more, as a sum.
#[test]
fn half_precision_rounds_logits_and_gradients() {
    let sizes = [67, 24, 331];
    let (hidden, weight) = (noise([67 * 24], 0), noise([24 * 331], 1));
    let logits = hidden.clone().reshape([67, 24]).matmul(weight.clone().reshape([24, 331]));
    let m = f64::from(logits.abs().max().into_scalar::<f32>());
    for budget in [CHUNK_ELEMENTS, 4096] {
        check_half(
            &format!("by {budget}"),
            [hidden.clone(), weight.clone()],
            |inputs| in_slices(inputs, sizes, &[166, 165], budget),
            |inputs| plain(inputs, sizes),
            2.0 * m + 5.0,
        );
    }
}

/// One slice of all words, by the public functions, beside the loss in one operation.
#[test]
fn the_whole_vocabulary_is_a_slice() {
    let [tokens, dim, vocab] = [67, 24, 331];
    for device in devices() {
        for dtype in [DType::F32, DType::BF16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            let leaf = |x: Tensor<2>| x.to_device(&device).cast(dtype).autodiff().require_grad();
            let [hidden, weight] = [noise([tokens, dim], 0), noise([dim, vocab], 1)].map(leaf);
            let words = targets(tokens, vocab, &device);
            let loss = linear_cross_entropy(
                hidden.clone(),
                weight.clone(),
                Tensor::from_data(words.to_data(), &hidden.device()),
            );
            let gradients = (loss.clone() * 0.5).backward();
            let want = [hidden.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()];
            let [hidden, weight] = [hidden.inner(), weight.inner()];
            let slice = vocabulary_statistics(hidden.clone(), weight.clone(), words.clone(), 0);
            assert_eq!(
                (slice.log_sum_exp.dtype(), slice.target_logit.dtype()),
                (DType::F32, DType::F32)
            );
            let ignored = words.clone().lower_elem(0);
            let rows = slice.log_sum_exp.clone() - slice.target_logit;
            let got = values(rows.mask_fill(ignored, 0.0).sum())[0];
            let (loss, half) = (values(loss)[0], Tensor::<1>::full([1], 0.5, &device));
            assert!((got - loss).abs() <= 1e-6 * loss, "{device:?} {dtype:?}: {got}, {loss}");
            let got = vocabulary_gradients(hidden, weight, words, 0, slice.log_sum_exp, half);
            let bound = if dtype == DType::F32 { 1e-6 } else { 2.0_f64.powi(-7) };
            for (got, want) in got.into_iter().zip(want) {
                assert_eq!(got.dtype(), dtype);
                let difference = crate::support::distance(&values(got), &values(want));
                assert!(difference <= bound, "{device:?} {dtype:?}: {difference:e}");
            }
        }
    }
}

#[test]
fn no_tokens_or_no_words() {
    for device in devices() {
        for (tokens, words) in [(0, 5), (3, 0), (0, 0)] {
            let inputs = || {
                [Tensor::<2>::ones([tokens, 4], &device), Tensor::<2>::ones([4, words], &device)]
            };
            let targets = Tensor::<1, Int>::from_data(vec![IGNORE; tokens].as_slice(), &device);
            let [hidden, weight] = inputs();
            let slice = vocabulary_statistics(hidden, weight, targets.clone(), 7);
            assert_eq!(values(slice.log_sum_exp.clone()), vec![f64::NEG_INFINITY; tokens]);
            assert_eq!(values(slice.target_logit), vec![0.0; tokens]);
            let [hidden, weight] = inputs();
            let one = Tensor::<1>::ones([1], &device);
            let [d_hidden, d_weight] =
                vocabulary_gradients(hidden, weight, targets, 7, slice.log_sum_exp, one);
            assert_eq!(values(d_hidden), vec![0.0; tokens * 4]);
            assert_eq!(values(d_weight), vec![0.0; 4 * words]);
        }
    }
}
