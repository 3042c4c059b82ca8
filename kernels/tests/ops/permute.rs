use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_titan_kernels::permute::reference;
use burn_titan_kernels::{ExpertOrder, gather_rows, permute, unpermute};
use proptest::prelude::*;

use crate::support::{assert_same, check, check_half, devices, noise, values};

/// `k` different experts for each token, in no order.
fn choices(tokens: usize, k: usize, experts: usize) -> Vec<i64> {
    let choice =
        |token: usize| (0..k).map(move |slot| (token * token + 5 * slot + token) % experts);
    (0..tokens).flat_map(choice).map(|expert| expert as i64).collect()
}

fn ints<const D: usize>(values: &[i64], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// The slots of all tokens, by expert and then by slot.
fn sorted_slots(chosen: &[i64]) -> Vec<usize> {
    let mut slots: Vec<usize> = (0..chosen.len()).collect();
    slots.sort_by_key(|slot| (chosen[*slot], *slot));
    slots
}

fn order(chosen: &[i64], k: usize, experts: usize, device: &Device) -> ExpertOrder {
    ExpertOrder::new(&ints(chosen, [chosen.len() / k, k], device), experts)
}

fn token_of_row(chosen: &[i64], k: usize, device: &Device) -> Tensor<1, Int> {
    let tokens: Vec<i64> = sorted_slots(chosen).iter().map(|slot| (slot / k) as i64).collect();
    ints(&tokens, [chosen.len()], device)
}

fn row_of_slot(chosen: &[i64], device: &Device) -> Tensor<1, Int> {
    let mut rows = vec![0; chosen.len()];
    for (row, slot) in sorted_slots(chosen).into_iter().enumerate() {
        rows[slot] = row as i64;
    }
    ints(&rows, [chosen.len()], device)
}

/// Tokens, slots of each, experts, and what is in a row.
const SIZES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [1, 3, 5, 7], [17, 2, 8, 33], [131, 1, 4, 5], [29, 8, 8, 19], [64, 4, 97, 300]];

#[test]
fn permute_equals_the_reference() {
    for [tokens, k, experts, dim] in SIZES {
        let chosen = choices(tokens, k, experts);
        check(
            &format!("{tokens} tokens, {k} of {experts}, {dim}"),
            [noise([tokens * dim], 0)],
            |[x]| {
                permute(x.clone().reshape([tokens, dim]), &order(&chosen, k, experts, &x.device()))
            },
            |[x]| {
                let rows = token_of_row(&chosen, k, &x.device());
                reference::permute(x.reshape([tokens, dim]), rows)
            },
            1e-6,
        );
    }
}

#[test]
fn unpermute_equals_the_reference() {
    for [tokens, k, experts, dim] in SIZES {
        let chosen = choices(tokens, k, experts);
        check(
            &format!("{tokens} tokens, {k} of {experts}, {dim}"),
            [noise([tokens * k * dim], 0), noise([tokens * k], 1)],
            |[rows, weights]| {
                let order = order(&chosen, k, experts, &rows.device());
                unpermute(rows.reshape([tokens * k, dim]), weights.reshape([tokens, k]), &order)
            },
            |[rows, weights]| {
                let places = row_of_slot(&chosen, &rows.device());
                let rows = rows.reshape([tokens * k, dim]);
                reference::unpermute(rows, weights.reshape([tokens, k]), places)
            },
            1e-6,
        );
    }
}

/// Weights, too, may be halves; their gradient is then rounded once.
#[test]
fn half_precision_rounds_once() {
    let [tokens, k, experts, dim] = [23, 3, 7, 21];
    let chosen = choices(tokens, k, experts);
    check_half(
        "permute",
        [noise([tokens * dim], 0)],
        |[x]| permute(x.clone().reshape([tokens, dim]), &order(&chosen, k, experts, &x.device())),
        |[x]| {
            let rows = token_of_row(&chosen, k, &x.device());
            reference::permute(x.reshape([tokens, dim]), rows)
        },
        1.0,
    );
    check_half(
        "unpermute",
        [noise([tokens * k * dim], 0), noise([tokens * k], 1)],
        |[rows, weights]| {
            let order = order(&chosen, k, experts, &rows.device());
            unpermute(rows.reshape([tokens * k, dim]), weights.reshape([tokens, k]), &order)
        },
        |[rows, weights]| {
            let places = row_of_slot(&chosen, &rows.device());
            let rows = rows.reshape([tokens * k, dim]);
            reference::unpermute(rows, weights.reshape([tokens, k]), places)
        },
        1.0,
    );
}

#[test]
fn inputs_need_not_be_contiguous() {
    let [tokens, k, experts, dim] = [13, 2, 4, 11];
    let chosen = choices(tokens, k, experts);
    check(
        "transposed",
        [noise([tokens * k * dim], 0), noise([tokens * k], 1)],
        |[rows, weights]| {
            let order = order(&chosen, k, experts, &rows.device());
            let rows = rows.reshape([dim, tokens * k]).transpose();
            unpermute(rows, weights.reshape([k, tokens]).transpose(), &order)
        },
        |[rows, weights]| {
            let places = row_of_slot(&chosen, &rows.device());
            let rows = rows.reshape([dim, tokens * k]).transpose();
            reference::unpermute(rows, weights.reshape([k, tokens]).transpose(), places)
        },
        1e-6,
    );
}

/// No token; experts that nobody chose; one that everybody did.
#[test]
fn counts_are_those_of_the_choice() {
    for device in devices() {
        let none = order(&[], 1, 3, &device);
        assert_eq!((none.counts(), none.tokens()), ([0, 0, 0].as_slice(), 0));
        let x = Tensor::<2>::ones([0, 4], &device).autodiff().require_grad();
        let rows = permute(x.clone(), &none);
        let weights = Tensor::<2>::ones([0, 1], &device);
        let y = unpermute(rows, weights, &none);
        assert_eq!(y.dims(), [0, 4]);
        assert_eq!(x.grad(&y.sum().backward()).unwrap().dims(), [0, 4]);

        let all = order(&[1; 5], 1, 3, &device);
        assert_eq!(all.counts(), [0, 5, 0]);
        let some = order(&[2, 0, 2, 1], 2, 4, &device);
        assert_eq!(some.counts(), [1, 1, 2, 0]);
        let x = Tensor::<2>::from_data([[1.0], [2.0]], &device);
        assert_eq!(values(permute(x, &some)), [1.0, 2.0, 1.0, 2.0]);
    }
}

#[test]
#[should_panic(expected = "a choice of expert 3 among 3")]
fn an_expert_that_is_not_there_is_refused() {
    order(&[0, 3], 1, 3, &Device::flex());
}

#[test]
fn gathered_rows_and_their_gradients_keep_their_bits() {
    let index = [3, 0, 4, 1, 2];
    for device in devices() {
        let x = noise([5, 7], 0).to_device(&device).autodiff().require_grad();
        let seed = noise([5, 7], 1).to_device(&device);
        let y = gather_rows(x.clone(), &index);
        let gradients = (y.clone() * seed.clone().autodiff()).sum().backward();
        let (y, dx) = (values(y.inner()), values(x.grad(&gradients).unwrap()));
        let (x, seed) = (values(x.inner()), values(seed));
        for (row, from) in index.iter().enumerate() {
            let at = |row: usize| row * 7..(row + 1) * 7;
            assert_same(&y[at(row)], &x[at(*from)], "y");
            assert_same(&dx[at(*from)], &seed[at(row)], "dx");
        }
    }
}

#[test]
#[should_panic(expected = "each of 3 rows once")]
fn an_index_that_is_no_permutation_is_refused() {
    gather_rows(noise([3, 2], 0), &[0, 2, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// There and back with weights of 1: each token `k` times, whoever chose whom.
    #[test]
    fn there_and_back(
        tokens in 1_usize..40,
        experts in 1_usize..9,
        seed in prop::collection::vec(0_usize..1000, 40..41),
    ) {
        let k = experts.div_ceil(2);
        let choice = |token: usize| {
            let first = seed[token];
            (0..k).map(move |slot| ((first + slot) % experts) as i64)
        };
        let chosen: Vec<i64> = (0..tokens).flat_map(choice).collect();
        for device in devices() {
            let order = order(&chosen, k, experts, &device);
            prop_assert_eq!(order.counts().iter().sum::<usize>(), tokens * k);
            let x = Tensor::<1, Int>::arange(0..(tokens * 3) as i64, &device).float();
            let x = x.reshape([tokens, 3]);
            let weights = Tensor::<2>::ones([tokens, k], &device);
            let y = unpermute(permute(x.clone(), &order), weights, &order);
            prop_assert_eq!(values(y), values(x * k as f64));
        }
    }
}
