use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_titan_kernels::embedding::{embedding, reference};
use proptest::prelude::*;

use crate::support::{check, check_half, devices, noise, values};

fn ids(values: &[i64], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Ids that repeat, in an order that is not sorted.
fn mixed(tokens: usize, vocab: usize) -> Vec<i64> {
    (0..tokens).map(|t| ((t * t + 3 * t) % 101 % vocab) as i64).collect()
}

fn check_ids([vocab, dim]: [usize; 2], [batch, seq]: [usize; 2], values: &[i64]) {
    let shape = [vocab, dim];
    check(
        &format!("weight {shape:?}, tokens {batch} x {seq}"),
        [noise([vocab * dim], 0)],
        |[w]| {
            let ids = ids(values, [batch, seq], &w.device());
            embedding(w.reshape(shape), ids)
        },
        |[w]| {
            let ids = ids(values, [batch, seq], &w.device());
            reference::embedding(w.reshape(shape), ids)
        },
        1e-6,
    );
}

#[test]
fn equals_the_reference_at_odd_sizes() {
    for (weight, [batch, seq]) in [
        ([1, 1], [1, 1]),
        ([7, 3], [2, 17]),
        ([97, 37], [1, 131]),
        ([33, 300], [3, 50]),
        ([2000, 16], [1, 5]),
    ] {
        check_ids(weight, [batch, seq], &mixed(batch * seq, weight[0]));
    }
}

#[test]
fn one_token_for_all_and_each_token_once() {
    check_ids([11, 33], [1, 700], &[7; 700]);
    check_ids([300, 5], [1, 300], &(0..300).rev().collect::<Vec<_>>());
}

#[test]
fn half_precision_rounds_once() {
    let (shape, tokens) = ([19, 24], [2, 40]);
    let values = mixed(80, 19);
    check_half(
        "half",
        [noise([19 * 24], 0)],
        |[w]| {
            let ids = ids(&values, tokens, &w.device());
            embedding(w.reshape(shape), ids)
        },
        |[w]| {
            let ids = ids(&values, tokens, &w.device());
            reference::embedding(w.reshape(shape), ids)
        },
        1.0,
    );
}

#[test]
fn inputs_need_not_be_contiguous() {
    let (shape, tokens) = ([24, 19], [4, 15]);
    let values = mixed(60, 19);
    check(
        "transposed",
        [noise([19 * 24], 0)],
        |[w]| {
            let ids = ids(&values, tokens, &w.device()).transpose();
            embedding(w.reshape(shape).transpose(), ids)
        },
        |[w]| {
            let ids = ids(&values, tokens, &w.device()).transpose();
            reference::embedding(w.reshape(shape).transpose(), ids)
        },
        1e-6,
    );
}

#[test]
fn rows_of_a_larger_tensor_are_read_in_place() {
    for device in devices() {
        let all = noise([30, 8], 3).to_device(&device);
        let got = embedding(all.clone().slice([10..20, 0..8]), ids(&[0, 9, 4], [1, 3], &device));
        let all = values(all);
        let want: Vec<f64> = [10, 19, 14].iter().flat_map(|r| all[r * 8..][..8].to_vec()).collect();
        assert_eq!(values(got), want, "{device:?}");
    }
}

/// No token, and ids that name no row: zeros, and no gradient.
#[test]
fn ids_without_a_row_touch_nothing() {
    for device in devices() {
        let weight = || noise([5, 3], 0).to_device(&device).autodiff().require_grad();
        let w = weight();
        let y = embedding(w.clone(), ids(&[-1, 2, 5, i64::from(i32::MAX)], [1, 4], &device));
        let gradients = y.clone().sum().backward();
        let y = values(y.inner());
        assert_eq!(y[..3], [0.0; 3], "{device:?}");
        assert_eq!(y[6..], [0.0; 6], "{device:?}");
        let mut want = [0.0; 15];
        want[6..9].fill(1.0);
        assert_eq!(values(w.grad(&gradients).unwrap()), want, "{device:?}");

        let w = weight();
        let y = embedding(w.clone(), ids(&[], [1, 0], &device));
        assert_eq!(y.dims(), [1, 0, 3]);
        let gradients = y.sum().backward();
        assert_eq!(values(w.grad(&gradients).unwrap()), [0.0; 15], "{device:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Small whole numbers add up exactly, so that every device must give the counted result.
    #[test]
    fn the_gradient_counts_tokens(
        vocab in 1_usize..40,
        dim in 1_usize..9,
        seed in prop::collection::vec(0_usize..1000, 1..120),
    ) {
        let values_of: Vec<i64> = seed.iter().map(|s| (s % vocab) as i64).collect();
        let mut want = vec![0.0; vocab * dim];
        for (t, id) in values_of.iter().enumerate() {
            want[*id as usize * dim..][..dim].iter_mut().for_each(|x| *x += (t % 8) as f64);
        }
        for device in devices() {
            let device = device.autodiff();
            let w = Tensor::<2>::zeros([vocab, dim], (&device, DType::F32)).require_grad();
            let y = embedding(w.clone(), ids(&values_of, [1, seed.len()], &device));
            let factors: Vec<f32> = (0..seed.len()).map(|t| (t % 8) as f32).collect();
            let factors = Tensor::<1>::from_floats(factors.as_slice(), &device);
            let gradients = (y * factors.reshape([1, seed.len(), 1])).sum().backward();
            prop_assert_eq!(&values(w.grad(&gradients).unwrap()), &want);
        }
    }
}
