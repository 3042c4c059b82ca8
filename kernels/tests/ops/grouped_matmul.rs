use burn::tensor::{DType, Tensor};
use burn_titan_kernels::grouped_matmul::{grouped_matmul, reference};
use burn_titan_kernels::put_off_weights;
use proptest::prelude::*;

use crate::support::{assert_same, check, check_half, devices, noise, values};

/// Sizes of `x` and of the weights.
fn elements(counts: &[usize], [inputs, outputs]: [usize; 2]) -> [usize; 2] {
    [counts.iter().sum::<usize>() * inputs, counts.len() * inputs * outputs]
}

/// Flat inputs as the shapes that the product takes.
fn shaped(
    [x, weights]: [Tensor<1>; 2],
    counts: &[usize],
    [inputs, outputs]: [usize; 2],
) -> (Tensor<2>, Tensor<3>) {
    let rows = counts.iter().sum::<usize>();
    (x.reshape([rows, inputs]), weights.reshape([counts.len(), inputs, outputs]))
}

fn check_counts(counts: &[usize], sizes: [usize; 2]) {
    let [x, weights] = elements(counts, sizes);
    check(
        &format!("{counts:?} rows, {sizes:?}"),
        [noise([x], 0), noise([weights], 1)],
        |inputs| {
            let (x, weights) = shaped(inputs, counts, sizes);
            grouped_matmul(x, weights, counts)
        },
        |inputs| {
            let (x, weights) = shaped(inputs, counts, sizes);
            reference::grouped_matmul(x, weights, counts)
        },
        1e-6,
    );
}

#[test]
fn equals_the_reference_at_odd_sizes() {
    check_counts(&[1], [1, 1]);
    check_counts(&[1, 0, 2], [3, 5]);
    check_counts(&[7, 31, 0, 13, 1], [17, 33]);
    check_counts(&[129, 2, 64], [65, 127]);
    check_counts(&[3, 300], [130, 31]);
}

/// Widths of whole vectors, which few rows of an expert take another way through on the CPU.
#[test]
fn equals_the_reference_where_rows_are_few() {
    check_counts(&[3, 0, 64, 17, 1], [23, 48]);
    check_counts(&[7, 33, 0, 2], [48, 16]);
    check_counts(&[31, 65, 5, 0], [80, 64]);
    check_counts(&[9; 11], [32, 112]);
}

#[test]
fn experts_get_nothing_or_everything() {
    check_counts(&[0, 0, 67, 0], [19, 23]);
    check_counts(&[67, 0, 0], [19, 23]);
    check_counts(&[0, 0, 67], [19, 23]);
    check_counts(&[2; 64], [9, 18]);
}

#[test]
fn half_precision_rounds_once() {
    let (counts, sizes) = ([5, 0, 140, 1], [33, 24]);
    let [x, weights] = elements(&counts, sizes);
    check_half(
        "half",
        [noise([x], 0), noise([weights], 1)],
        |inputs| {
            let (x, weights) = shaped(inputs, &counts, sizes);
            grouped_matmul(x, weights, &counts)
        },
        |inputs| {
            let (x, weights) = shaped(inputs, &counts, sizes);
            reference::grouped_matmul(x, weights, &counts)
        },
        1.0,
    );
}

#[test]
fn inputs_need_not_be_contiguous() {
    let counts = [4, 9, 0, 2];
    let strided = |[x, weights]: [Tensor<1>; 2]| {
        let weights = weights.reshape([4, 11, 7]).swap_dims(1, 2);
        (x.reshape([7, 15]).transpose(), weights)
    };
    check(
        "strided",
        [noise([105], 0), noise([308], 1)],
        |inputs| {
            let (x, weights) = strided(inputs);
            grouped_matmul(x, weights, &counts)
        },
        |inputs| {
            let (x, weights) = strided(inputs);
            reference::grouped_matmul(x, weights, &counts)
        },
        1e-6,
    );
}

/// No row at all, and no width: zeros of the right shapes.
#[test]
fn nothing_to_multiply() {
    for device in devices() {
        for (counts, [inputs, outputs]) in [(vec![0, 0], [3, 2]), (vec![2, 1], [0, 2])] {
            let rows = counts.iter().sum();
            let x = Tensor::<2>::ones([rows, inputs], &device).autodiff().require_grad();
            let weights =
                Tensor::<3>::ones([2, inputs, outputs], &device).autodiff().require_grad();
            let y = grouped_matmul(x.clone(), weights.clone(), &counts);
            assert_eq!(y.dims(), [rows, outputs]);
            let gradients = y.clone().sum().backward();
            assert_eq!(values(y.inner()), vec![0.0; rows * outputs], "{device:?}");
            let dx = x.grad(&gradients).unwrap();
            assert_eq!(dx.dims(), [rows, inputs]);
            let dw = values(weights.grad(&gradients).unwrap());
            assert_eq!(dw, vec![0.0; 2 * inputs * outputs], "{device:?}");
        }
    }
}

/// Put off or not: the same bits.
#[test]
fn the_gradient_of_the_weights_can_wait() {
    let counts = [3, 0, 8];
    for device in devices() {
        let x = noise([11, 5], 0).to_device(&device).autodiff().require_grad();
        let weights = noise([3, 5, 6], 1).to_device(&device).autodiff().require_grad();
        let run = || grouped_matmul(x.clone(), weights.clone(), &counts).sum().backward();
        let at_once = run();
        let (split, waiting) = put_off_weights(run);
        let want = values(x.grad(&at_once).unwrap());
        assert_same(&values(x.grad(&split).unwrap()), &want, "dx");
        assert!(weights.grad(&split).is_none());
        let rest: Vec<_> = waiting.compute().collect();
        assert_eq!(rest.len(), 1);
        let want = values(weights.grad(&at_once).unwrap());
        assert_same(&values(weights.grad(&rest[0]).unwrap()), &want, "dW");
    }
}

/// Central differences of the f64 reference, which a bilinear function has without error.
#[test]
fn gradients_are_differences() {
    let (counts, sizes) = ([2, 0, 3], [3, 2]);
    let inputs = [noise([15], 4), noise([18], 5)];
    let seed = noise([5, 2], 6);
    let at = |inputs: &[Tensor<1>; 2]| {
        let inputs = inputs.clone().map(|x| x.cast(DType::F64));
        let (x, weights) = shaped(inputs, &counts, sizes);
        let y = reference::grouped_matmul(x, weights, &counts);
        values((y * seed.clone().cast(DType::F64)).sum())[0]
    };
    for device in devices() {
        let leaves = inputs.clone().map(|x| x.to_device(&device).autodiff().require_grad());
        let (x, weights) = shaped(leaves.clone(), &counts, sizes);
        let y = grouped_matmul(x, weights, &counts);
        let seed = seed.clone().to_device(&device).autodiff();
        let gradients = (y * seed).sum().backward();
        for (input, leaf) in leaves.iter().enumerate() {
            let got = values(leaf.grad(&gradients).unwrap());
            for (i, got) in got.iter().enumerate() {
                let moved = |step: f32| {
                    let mut inputs = inputs.clone();
                    let mut elements: Vec<f32> =
                        inputs[input].clone().into_data().try_into_vec().unwrap();
                    elements[i] += step;
                    inputs[input] =
                        Tensor::from_floats(elements.as_slice(), &inputs[input].device());
                    at(&inputs)
                };
                let want = (moved(0.25) - moved(-0.25)) / 0.5;
                assert!((got - want).abs() < 1e-5, "{device:?}, input {input}: {got} {want}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Small whole numbers add up exactly, so that every device must give the counted result.
    #[test]
    fn each_row_meets_its_expert(
        counts in prop::collection::vec(0_usize..90, 1..9),
        inputs in 1_usize..40,
        outputs in 1_usize..70,
    ) {
        let rows: usize = counts.iter().sum();
        let experts = counts.len();
        let expert_of: Vec<usize> =
            counts.iter().enumerate().flat_map(|(e, n)| std::iter::repeat_n(e, *n)).collect();
        let want: Vec<f64> = expert_of.iter().flat_map(|e| vec![((e + 1) * inputs) as f64; outputs]).collect();
        for device in devices() {
            let x = Tensor::<2>::ones([rows, inputs], &device);
            let scale: Vec<f32> = (1..=experts).map(|e| e as f32).collect();
            let scale = Tensor::<1>::from_floats(scale.as_slice(), &device);
            let weights = scale.reshape([experts, 1, 1]).expand([experts, inputs, outputs]);
            let y = grouped_matmul(x, weights, &counts);
            prop_assert_eq!(&values(y), &want);
        }
    }
}
