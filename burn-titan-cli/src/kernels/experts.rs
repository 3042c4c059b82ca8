//! The operations of a mixture of experts, forward and backward.

use burn::tensor::{DType, Tensor};
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::{
    ExpertGroups, ExpertOrder, GroupScore, RouterScores, Routing, grouped_matmul, permute, route,
    router, unpermute,
};

use super::Checker;
use super::compare::{Bounds, noise, whole_numbers};

pub fn check(checker: &mut Checker) -> Result<(), TrainError> {
    products(checker)?;
    permutations(checker)?;
    choices(checker)
}

/// Products of each expert's rows, of which there may be none.
fn products(checker: &mut Checker) -> Result<(), TrainError> {
    use burn_titan_kernels::grouped_matmul::reference;
    let cases: [(&[usize], [usize; 2]); 4] = [
        (&[0, 0, 1, 0], [3, 5]),
        (&[7, 0, 130, 1], [24, 37]),
        (&[0, 211, 0], [64, 96]),
        (&[33; 16], [128, 40]),
    ];
    for (counts, [inputs, outputs]) in cases {
        let (experts, rows) = (counts.len(), counts.iter().sum::<usize>());
        checker.check_differentiable(
            ("grouped_matmul", &format!("{rows} rows x {inputs} by {experts} x {outputs}")),
            [("x", noise([rows * inputs], 0)), ("weights", noise([experts * inputs * outputs], 1))],
            |[x, weights]| {
                let weights = weights.reshape([experts, inputs, outputs]);
                grouped_matmul(x.reshape([rows, inputs]), weights, counts)
            },
            |[x, weights]| {
                let weights = weights.reshape([experts, inputs, outputs]);
                reference::grouped_matmul(x.reshape([rows, inputs]), weights, counts)
            },
            Bounds { single: 5e-6, roundings: 2.0, products: false },
        )?;
    }
    Ok(())
}

/// Tokens to the order of experts, and back as sums.
fn permutations(checker: &mut Checker) -> Result<(), TrainError> {
    use burn_titan_kernels::permute::reference;
    for ([tokens, dim], [experts, top_k]) in
        [([1, 3], [1, 1]), ([67, 37], [7, 3]), ([130, 128], [16, 2])]
    {
        let place = |slot: usize| ((slot / top_k * 5 + slot % top_k) % experts) as i64;
        let chosen: Vec<i64> = (0..tokens * top_k).map(place).collect();
        let mut slots: Vec<usize> = (0..chosen.len()).collect();
        slots.sort_by_key(|slot| chosen[*slot]);
        let token_of_row: Vec<i64> = slots.iter().map(|slot| (slot / top_k) as i64).collect();
        let mut row_of_slot = vec![0; slots.len()];
        for (row, slot) in slots.iter().enumerate() {
            row_of_slot[*slot] = row as i64;
        }
        // What experts make of rows.
        let factors = |rows: &Tensor<2>| {
            let factors = noise([tokens * top_k, 1], 7).to_device(&rows.device().inner());
            factors.cast(rows.dtype()).autodiff()
        };
        checker.check_differentiable(
            ("permute, unpermute", &format!("{tokens} x {dim} to {top_k} of {experts}")),
            [("x", noise([tokens * dim], 0)), ("weights", noise([tokens * top_k], 1))],
            |[x, weights]| {
                let chosen = whole_numbers(&chosen, [tokens, top_k], &x.device().inner());
                let order = ExpertOrder::new(&chosen, experts);
                let rows = permute(x.reshape([tokens, dim]), &order);
                let factors = factors(&rows);
                unpermute(rows * factors, weights.reshape([tokens, top_k]).cast(DType::F32), &order)
            },
            |[x, weights]| {
                let on = |places: &[i64], x: &Tensor<1>| {
                    whole_numbers(places, [tokens * top_k], &x.device())
                };
                let (to_rows, to_slots) = (on(&token_of_row, &x), on(&row_of_slot, &x));
                let rows = reference::permute(x.reshape([tokens, dim]), to_rows);
                let factors = factors(&rows);
                let weights = weights.reshape([tokens, top_k]);
                reference::unpermute(rows * factors, weights, to_slots)
            },
            // The factors, their products, the sum.
            Bounds { single: 2e-6, roundings: 4.0, products: false },
        )?;
    }
    Ok(())
}

/// The weights of the experts that a router chooses.
fn choices(checker: &mut Checker) -> Result<(), TrainError> {
    let plain = |top_k, scores, renormalise| Routing {
        top_k,
        scores,
        renormalise,
        scale: 2.5,
        groups: None,
    };
    let grouped = |by| Routing {
        groups: Some(ExpertGroups { groups: 4, chosen: 2, by }),
        ..plain(3, RouterScores::Sigmoid, true)
    };
    let cases = [
        (67, 7, "softmax", plain(1, RouterScores::Softmax, false)),
        (131, 12, "softmax, renormalised", plain(3, RouterScores::Softmax, true)),
        (33, 128, "sigmoid", plain(8, RouterScores::Sigmoid, false)),
        (50, 16, "best groups", grouped(GroupScore::Best)),
        (50, 256, "groups of the best two", grouped(GroupScore::BestTwo)),
    ];
    for (tokens, experts, name, routing) in cases {
        let bias = || noise([experts], 5) * 0.1;
        checker.check_differentiable(
            ("router", &format!("{tokens} to {} of {experts}, {name}", routing.top_k)),
            [("logits", noise([tokens * experts], 0) * 3.0)],
            |[logits]| {
                let bias = bias().to_device(&logits.device().inner());
                let logits = logits.reshape([tokens, experts]).cast(DType::F32);
                route(logits, Some(bias), &routing).weights
            },
            |[logits]| {
                let logits = logits.reshape([tokens, experts]);
                router::reference::route(logits, Some(bias()), &routing).weights
            },
            // The gradient is rounded once.
            Bounds { single: 2e-6, roundings: 1.0, products: false },
        )?;
    }
    Ok(())
}
