use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_titan_kernels::router::reference;
use burn_titan_kernels::{
    ExpertGroups, GroupScore, RouterScores, Routing, route, router_z_loss, sequence_balance_loss,
    sequence_loads,
};

use crate::support::{check, devices, distance, noise, values};

fn routing(top_k: usize, scores: RouterScores, renormalise: bool, scale: f64) -> Routing {
    Routing { top_k, scores, renormalise, scale, groups: None }
}

fn grouped(top_k: usize, groups: usize, chosen: usize, by: GroupScore) -> Routing {
    let groups = Some(ExpertGroups { groups, chosen, by });
    Routing { groups, ..routing(top_k, RouterScores::Sigmoid, true, 2.5) }
}

/// Choices, weights and scores, and the gradients of both, against f64.
fn check_routing(tokens: usize, experts: usize, routing: &Routing) {
    let name = format!("{tokens} tokens, {experts} experts, {routing:?}");
    let logits = noise([tokens * experts], 3) * 4.0;
    let bias = || noise([experts], 4) * 0.2;
    for device in devices() {
        let logits = logits.clone().reshape([tokens, experts]).to_device(&device);
        let want = reference::route(
            logits.clone().to_device(&noise([1], 0).device()).cast(DType::F64),
            Some(bias()),
            routing,
        );
        let got = route(logits, Some(bias().to_device(&device)), routing);
        let ids = |chosen: Tensor<2, Int>| chosen.into_data().iter::<i64>().collect::<Vec<_>>();
        assert_eq!(ids(got.chosen), ids(want.chosen), "{name} on {device:?}");
    }
    let shape = [tokens, experts];
    check(
        &format!("weights of {name}"),
        [logits.clone()],
        |[x]| {
            let bias = bias().to_device(&x.device().inner());
            route(x.reshape(shape), Some(bias), routing).weights
        },
        |[x]| reference::route(x.reshape(shape), Some(bias()), routing).weights,
        2e-6,
    );
    check(
        &format!("scores of {name}"),
        [logits],
        |[x]| route(x.reshape(shape), None, routing).scores,
        |[x]| reference::route(x.reshape(shape), None, routing).scores,
        1e-6,
    );
}

#[test]
fn equals_the_reference() {
    use RouterScores::{Sigmoid, Softmax};
    check_routing(1, 1, &routing(1, Softmax, true, 1.0));
    check_routing(7, 5, &routing(1, Sigmoid, false, 1.0));
    check_routing(31, 8, &routing(2, Softmax, true, 1.0));
    check_routing(31, 8, &routing(8, Softmax, false, 3.0));
    check_routing(67, 61, &routing(6, Sigmoid, true, 2.5));
}

#[test]
fn groups_limit_the_choice() {
    check_routing(31, 8, &grouped(2, 4, 2, GroupScore::BestTwo));
    check_routing(31, 8, &grouped(2, 4, 2, GroupScore::Best));
    check_routing(53, 64, &grouped(8, 8, 4, GroupScore::BestTwo));
    check_routing(53, 64, &grouped(6, 8, 3, GroupScore::Best));
    check_routing(13, 12, &grouped(3, 12, 3, GroupScore::BestTwo));
    check_routing(13, 12, &grouped(12, 1, 1, GroupScore::BestTwo));
}

/// The experts of each token of some logits, on every device.
fn assert_chosen(logits: &[f32], bias: Option<&[f32]>, routing: &Routing, want: &[i64]) {
    let tokens = want.len() / routing.top_k;
    let shape = [tokens, logits.len() / tokens];
    for device in devices() {
        let logits = Tensor::from_data(TensorData::new(logits.to_vec(), shape), &device);
        let bias = bias.map(|bias| Tensor::<1>::from_floats(bias, &device));
        let chosen = route(logits, bias, routing).chosen.into_data();
        assert_eq!(chosen.iter::<i64>().collect::<Vec<_>>(), want, "{device:?}");
    }
}

#[test]
fn of_equals_the_lower_ids_are_chosen() {
    let two = routing(2, RouterScores::Softmax, true, 1.0);
    assert_chosen(&[0.0; 12], None, &two, &[0, 1, 0, 1]);
    assert_chosen(&[1.0, 2.0, 1.0, 2.0, 2.0, 1.0], None, &two, &[1, 3]);
    assert_chosen(&[3.0, 1.0, 1.0, 1.0], None, &two, &[0, 1]);
    let groups = grouped(2, 3, 1, GroupScore::BestTwo);
    assert_chosen(&[0.0, 1.0, 1.0, 0.0, 0.2, 0.2], None, &groups, &[0, 1]);
    assert_chosen(&[0.0, 1.0, 2.0, 0.0, 0.0, 2.0], None, &groups, &[2, 3]);
}

/// With a bias only the choice is another; and the best of a group counts as it is told to.
#[test]
fn bias_and_groups_decide() {
    let one = routing(1, RouterScores::Sigmoid, false, 1.0);
    assert_chosen(&[1.0, 0.0, -1.0], Some(&[0.0, 0.0, 1.0]), &one, &[2]);
    let logits = [4.0, -4.0, 1.0, 1.0];
    assert_chosen(&logits, None, &grouped(1, 2, 1, GroupScore::Best), &[0]);
    assert_chosen(&logits, None, &grouped(1, 2, 1, GroupScore::BestTwo), &[2]);
    // Even the worst of a chosen group, however negative, is before the best of another.
    let bias = [-9.0, -9.0, -9.5, -9.5];
    assert_chosen(&[0.0; 4], Some(&bias), &grouped(2, 2, 1, GroupScore::Best), &[0, 1]);
}

#[test]
fn no_number_chooses_the_last_or_the_first() {
    let one = routing(2, RouterScores::Sigmoid, true, 1.0);
    assert_chosen(&[f32::NAN, -1.0, 2.0, f32::NAN], None, &one, &[1, 2]);
    let all = [f32::NAN; 4];
    assert_chosen(&all, None, &one, &[0, 1]);
    assert_chosen(&all, None, &routing(2, RouterScores::Softmax, true, 1.0), &[0, 1]);
    assert_chosen(&all, None, &grouped(2, 2, 1, GroupScore::BestTwo), &[0, 1]);
}

#[test]
fn no_token_has_no_experts() {
    for device in devices() {
        let logits = Tensor::<2>::ones([0, 4], &device);
        let routed = route(logits, None, &routing(2, RouterScores::Softmax, true, 1.0));
        assert_eq!((routed.chosen.dims(), routed.weights.dims()), ([0, 2], [0, 2]));
    }
}

#[test]
fn what_cannot_be_chosen_is_refused() {
    let message = |routing: Routing, experts| routing.check(experts).unwrap_err().to_string();
    let plain = |top_k| routing(top_k, RouterScores::Softmax, true, 1.0);
    assert_eq!(plain(8).check(8), Ok(()));
    assert_eq!(
        message(plain(9), 8),
        "a token goes to 9 of 8 experts: it has to be one at least, and no more than there are"
    );
    assert!(message(plain(0), 8).starts_with("a token goes to 0 of 8 experts"));
    let by = GroupScore::Best;
    assert_eq!(message(grouped(1, 3, 1, by), 8), "8 experts are not cut evenly into 3 groups");
    assert_eq!(message(grouped(1, 0, 1, by), 8), "8 experts are not cut evenly into 0 groups");
    assert!(message(grouped(1, 4, 5, by), 8).starts_with("a token chooses 5 of 4 groups"));
    assert!(message(grouped(1, 4, 0, by), 8).starts_with("a token chooses 0 of 4 groups"));
    assert_eq!(
        message(grouped(5, 4, 2, by), 8),
        "a token goes to 5 experts, but the 2 groups that it chooses have 4: choose more groups, or fewer experts"
    );
}

/// Central differences of the f64 reference.
#[test]
fn gradients_of_the_weights_are_differences() {
    let routing = grouped(2, 3, 2, GroupScore::BestTwo);
    let logits: Vec<f32> = noise([24], 9).into_data().try_into_vec().unwrap();
    let seed = noise([4, 2], 6);
    let at = |logits: &[f32], expert: usize, step: f64| {
        let mut wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        wide[expert] += step;
        let device = seed.device();
        let wide = Tensor::<2>::from_data(TensorData::new(wide, [4, 6]), (&device, DType::F64));
        let weights = reference::route(wide, None, &routing).weights;
        values((weights * seed.clone().cast(DType::F64)).sum())[0]
    };
    for device in devices() {
        let leaf = Tensor::<2>::from_data(TensorData::new(logits.clone(), [4, 6]), &device);
        let leaf = leaf.autodiff().require_grad();
        let weights = route(leaf.clone(), None, &routing).weights;
        let gradients = (weights * seed.clone().to_device(&device).autodiff()).sum().backward();
        let got = values(leaf.grad(&gradients).unwrap());
        let numeric = |i| (at(&logits, i, 1e-5) - at(&logits, i, -1e-5)) / 2e-5;
        let want: Vec<f64> = (0..24).map(numeric).collect();
        let far = distance(&got, &want);
        assert!(far < 1e-5, "{device:?}: {far:e}");
    }
}

/// The sequence-wise loss, as its paper writes it.
fn balance_loss(scores: &[f64], chosen: &[i64], experts: usize, top_k: usize, alpha: f64) -> f64 {
    let tokens = scores.len() / experts;
    let of = |expert: usize| {
        let times = chosen.iter().filter(|id| **id == expert as i64).count() as f64;
        let share = |token: &[f64]| token[expert] / token.iter().sum::<f64>();
        let mean = scores.chunks(experts).map(share).sum::<f64>() / tokens as f64;
        experts as f64 / (top_k * tokens) as f64 * times * mean
    };
    alpha * (0..experts).map(of).sum::<f64>()
}

#[test]
fn the_balance_loss_is_that_of_its_paper() {
    let (sequences, length, experts, alpha) = (3, 7, 6, 1e-4);
    let routing = grouped(2, 3, 2, GroupScore::BestTwo);
    let tokens = sequences * length;
    for device in devices() {
        let logits = (noise([tokens, experts], 11) * 3.0).to_device(&device);
        let leaf = logits.autodiff().require_grad();
        let routed = route(leaf, None, &routing);
        // Gradients of the scores themselves.
        let scores = routed.scores.clone().inner().autodiff().require_grad();
        let sequence = in_sequences(sequences, length, &device);
        let loads = sequence_loads(&routed.chosen, &sequence, sequences, experts);
        // The tokens lie on two ranks, which cut the second sequence.
        let part = |rows: std::ops::Range<usize>| {
            let (scores, sequence) =
                (scores.clone().slice(rows.clone()), sequence.clone().slice(rows));
            sequence_balance_loss(scores, loads.clone(), &sequence, [length, 2], alpha)
        };
        let loss = part(0..length + 3) + part(length + 3..tokens);
        let gradients = loss.clone().backward();
        let got = values(loss.inner())[0];
        let gradient = values(scores.grad(&gradients).unwrap());
        let scores = values(scores.inner());
        let chosen: Vec<i64> = routed.chosen.into_data().iter::<i64>().collect();
        let of_sequence = |scores: &[f64], sequence: usize| {
            let rows = sequence * length..(sequence + 1) * length;
            let scores = &scores[rows.start * experts..rows.end * experts];
            balance_loss(scores, &chosen[rows.start * 2..rows.end * 2], experts, 2, alpha)
        };
        let total = |scores: &[f64]| (0..sequences).map(|s| of_sequence(scores, s)).sum::<f64>();
        let want = total(&scores);
        assert!((got - want).abs() < 1e-6 * want.abs(), "{device:?}: {got} {want}");
        let numeric = |i: usize| {
            let moved = |step: f64| {
                let mut scores = scores.clone();
                scores[i] += step;
                total(&scores)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        };
        let worst = (0..scores.len()).map(|i| (gradient[i] - numeric(i)).abs()).fold(0.0, f64::max);
        let largest = gradient.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        assert!(worst < 1e-5 * largest, "{device:?}: {worst:e} of {largest:e}");
    }
}

#[test]
fn even_loads_and_scores_cost_alpha() {
    for device in devices() {
        let scores = Tensor::<2>::full([4, 4], 0.3, &device);
        let chosen = Tensor::<2, Int>::from_data([[0, 1], [2, 3], [0, 1], [2, 3]], &device);
        let sequence = in_sequences(2, 2, &device);
        let loads = sequence_loads(&chosen, &sequence, 2, 4);
        assert_eq!(values(loads.clone()), [1.0; 8], "{device:?}");
        let loss = values(sequence_balance_loss(scores, loads, &sequence, [2, 2], 0.5))[0];
        assert!((loss - 2.0 * 0.5).abs() < 1e-6, "{loss}");
    }
}

/// The sequence of each token, where sequences of this length follow each other.
fn in_sequences(sequences: usize, length: usize, device: &Device) -> Tensor<1, Int> {
    let sequences: Vec<i32> =
        (0..sequences * length).map(|token| (token / length) as i32).collect();
    Tensor::from_data(sequences.as_slice(), device)
}

#[test]
fn the_z_loss_is_that_of_its_paper() {
    let (tokens, experts) = (5, 7);
    check(
        "z loss",
        [noise([tokens * experts], 12) * 5.0],
        |[x]| router_z_loss(x.reshape([tokens, experts])),
        |[x]| {
            let x = x.reshape([tokens, experts]);
            x.exp().sum_dim(1).log().square().sum()
        },
        1e-6,
    );
    // Logits whose exponentials are too large for f32.
    for device in devices() {
        let loss = router_z_loss(Tensor::<2>::full([2, 1], 200.0, &device));
        assert_eq!(values(loss), [80_000.0], "{device:?}");
    }
}
