use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use burn::tensor::{Device, Tensor};
use burn_titan_kernels::differentiable;

use crate::support::{check, check_half, devices, noise, values};

/// `a b` for matrices, with the backward by hand.
fn product([a, b]: [Tensor<2>; 2]) -> Tensor<2> {
    differentiable([a, b], |[a, b]| {
        let output = a.clone().matmul(b.clone());
        (output, Box::new(|dy| [dy.clone().matmul(b.transpose()), a.transpose().matmul(dy)]))
    })
}

/// The sum over dim 0 times 3: of another rank than its input.
fn triple_sum(x: Tensor<2>) -> Tensor<1> {
    differentiable([x], |[x]| {
        let shape = x.dims();
        let backward = move |dy: Tensor<1>| [(dy * 3.0).unsqueeze_dim::<2>(0).expand(shape)];
        ((x.sum_dim(0) * 3.0).squeeze_dim(0), Box::new(backward))
    })
}

/// Functions by hand among functions of Burn's, with inputs that are used again.
fn composed([a, b]: [Tensor<1>; 2], by_hand: bool) -> Tensor<1> {
    let (a, b) = (a.reshape([7, 5]), b.reshape([5, 3]));
    let x = a.clone() * 0.5;
    let y = if by_hand { product([x, b.clone()]) } else { x.matmul(b.clone()) };
    let y = y.tanh() + a.narrow(1, 0, 3) + b.narrow(0, 0, 1);
    if by_hand { triple_sum(y) } else { y.sum_dim(0).squeeze_dim(0) * 3.0 }
}

#[test]
fn gradients_are_those_of_burns_own_functions() {
    check(
        "composed",
        [noise([35], 0), noise([15], 1)],
        |inputs| composed(inputs, true),
        |inputs| composed(inputs, false),
        1e-6,
    );
    check_half(
        "composed",
        [noise([35], 0), noise([15], 1)],
        |inputs| composed(inputs, true),
        |inputs| composed(inputs, false),
        6.0,
    );
}

#[test]
fn the_backward_of_untracked_inputs_is_dropped() {
    for device in devices() {
        let calls = Arc::new(AtomicUsize::new(0));
        let double = |x: Tensor<2>| {
            let calls = calls.clone();
            differentiable([x], |[x]| {
                assert!(!x.is_autodiff());
                let backward = move |dy: Tensor<2>| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    [dy * 2.0]
                };
                (x * 2.0, Box::new(backward))
            })
        };
        let x = noise([2, 3], 4).to_device(&device);
        let plain = double(x.clone());
        assert!(!plain.is_autodiff());
        let constant = double(x.clone().autodiff());
        assert!(constant.is_autodiff() && !constant.is_tracked());
        assert_eq!(Arc::strong_count(&calls), 1, "nothing was saved");

        let leaf = x.clone().autodiff().require_grad();
        let tracked = double(leaf.clone());
        assert_eq!(values(tracked.clone().inner()), values(plain));
        assert_eq!(Arc::strong_count(&calls), 2);
        let gradients = tracked.backward();
        assert_eq!(values(leaf.grad(&gradients).unwrap()), [2.0; 6]);
        assert_eq!((calls.load(Ordering::Relaxed), Arc::strong_count(&calls)), (1, 1));
    }
}

/// Constants come with and without autodiff.
#[test]
fn only_tracked_inputs_get_gradients() {
    for device in devices() {
        let [a, b] = [noise([4, 2], 1), noise([2, 3], 2)].map(|x| x.to_device(&device));
        let seed = noise([4, 3], 3).to_device(&device);
        let want = values(a.clone().transpose().matmul(seed.clone()));
        for a in [a.clone(), a.autodiff()] {
            let leaf = b.clone().autodiff().require_grad();
            let y = product([a.clone(), leaf.clone()]);
            let gradients = (y * seed.clone().autodiff()).sum().backward();
            assert_eq!(values(leaf.grad(&gradients).unwrap()), want);
            assert!(a.grad(&gradients).is_none());
        }
    }
}

/// Two ranks in one process, each of whose backwards goes on only once the other's has begun.
#[test]
fn backwards_of_two_threads_may_wait_for_each_other() {
    for device in devices() {
        let barrier = Arc::new(Barrier::new(2));
        let rank = |factor: f64, device: Device| {
            let barrier = barrier.clone();
            let meet = move |x: Tensor<2>| {
                let barrier = barrier.clone();
                differentiable([x], |[x]| {
                    barrier.wait();
                    let backward = move |dy: Tensor<2>| {
                        barrier.wait();
                        [dy * 2.0]
                    };
                    (x * 2.0, Box::new(backward))
                })
            };
            let leaf = (noise([3, 3], 5) * factor).to_device(&device).autodiff().require_grad();
            let mut gradient = Vec::new();
            for _ in 0..20 {
                let y = meet(meet(leaf.clone()) * factor);
                gradient = values(leaf.grad(&y.backward()).unwrap());
            }
            gradient
        };
        let [one, two] = std::thread::scope(|scope| {
            let threads = [1.0, 2.0].map(|factor| {
                let (rank, device) = (&rank, device.clone());
                scope.spawn(move || rank(factor, device))
            });
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!((one, two), (vec![4.0; 9], vec![8.0; 9]));
    }
}
