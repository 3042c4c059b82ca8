//! The product with a weight, whose gradient can wait.
//!
//! `y = x W`; `dx = dy W^T`, `dW = x^T dy`. Only `dx` is needed to go on backwards: a pipeline fills its bubbles with
//! the `dW` (zero-bubble schedules, Qi et al., 2023).

use std::cell::RefCell;

use burn::tensor::{DType, Gradients, Tensor};

use crate::differentiable::partly_differentiable;
use crate::inject_gradient;

/// Gradients of weights that were put off, with what they are computed from.
#[derive(Default)]
pub struct WeightGradients(Vec<Box<dyn FnOnce() -> Gradients>>);

impl WeightGradients {
    /// Computes them, a weight at a time: what the rest of the backward, from the weight as [`linear`] or
    /// [`grouped_matmul`](crate::grouped_matmul()) got it, gives the leaves behind it. A weight that was used twice comes
    /// twice.
    pub fn compute(self) -> impl Iterator<Item = Gradients> {
        self.0.into_iter().map(|gradients| gradients())
    }
}

thread_local! {
    /// What the backward that runs on this thread puts off, if it is to.
    static PUT_OFF: RefCell<Option<WeightGradients>> = const { RefCell::new(None) };
}

/// Runs a backward in which no weight of [`linear`] or [`grouped_matmul`](crate::grouped_matmul()) gets its gradient, and
/// gives what computes them. The weights are leaves of the graph.
pub fn put_off_weights<T>(backward: impl FnOnce() -> T) -> (T, WeightGradients) {
    PUT_OFF.set(Some(WeightGradients::default()));
    let result = backward();
    (result, PUT_OFF.take().unwrap_or_default())
}

/// The gradient of a weight: none yet if this backward puts weights off, and none at all for a constant.
pub(crate) fn now_or_later<const D: usize>(
    weight: Tensor<D>,
    gradient: impl FnOnce() -> Tensor<D> + 'static,
) -> Option<Tensor<D>> {
    if !weight.is_tracked() {
        return None;
    }
    PUT_OFF.with_borrow_mut(|put_off| match put_off {
        Some(WeightGradients(list)) => {
            list.push(Box::new(|| inject_gradient(weight, gradient()).backward()));
            None
        }
        None => Some(gradient()),
    })
}

/// `x W`, of `[tokens, in]` and `[in, out]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    product(x, weight, dtype)
}

/// As [`linear`], in f32 whatever the dtypes of `x` and `weight` are, whose gradients have these.
pub fn linear_f32(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    product(x, weight, DType::F32)
}

fn product(x: Tensor<2>, weight: Tensor<2>, dtype: DType) -> Tensor<2> {
    let tracked = weight.clone();
    partly_differentiable([x, weight], |[x, weight]| {
        let dtypes = [x.dtype(), weight.dtype()];
        let [x, weight] = [x, weight].map(|tensor| tensor.cast(dtype));
        let output = x.clone().matmul(weight.clone());
        let backward = move |gradient: Tensor<2>| {
            let dx = gradient.clone().matmul(weight.transpose()).cast(dtypes[0]);
            let dw = move || x.transpose().matmul(gradient).cast(dtypes[1]);
            [Some(dx), now_or_later(tracked, dw)]
        };
        (output, Box::new(backward))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// Put off or not, on one weight that is used twice: the same bits.
    #[test]
    fn gradients_that_wait_are_the_same() {
        let device = Device::flex().autodiff();
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<f32>>();
        let matrix = |rows: usize, columns: usize, f: f32| {
            let values = TensorData::new(wave(rows * columns, f), [rows, columns]);
            Tensor::<2>::from_data(values, &device).require_grad()
        };
        let (x, w, v) = (matrix(7, 5, 0.7), matrix(5, 5, 0.3), matrix(5, 3, 1.1));
        let run = || linear(linear(linear(x.clone(), w.clone()).tanh(), w.clone()), v.clone());
        let at_once = run().sum().backward();
        let (mut split, waiting) = put_off_weights(|| run().sum().backward());
        let data = |gradient: Option<Tensor<2>>| gradient.unwrap().into_data();
        data(x.grad(&split)).assert_eq(&data(x.grad(&at_once)), true);
        assert!(w.grad_remove(&mut split).is_none() && v.grad(&split).is_none());
        let mut sums: [Option<Tensor<2>>; 2] = [None, None];
        let mut seen = 0;
        for gradients in waiting.compute() {
            for (sum, leaf) in sums.iter_mut().zip([&w, &v]) {
                if let Some(gradient) = leaf.grad(&gradients) {
                    *sum = Some(sum.take().map_or(gradient.clone(), |sum| sum + gradient));
                }
            }
            seen += 1;
        }
        assert_eq!(seen, 3);
        for (sum, leaf) in sums.into_iter().zip([&w, &v]) {
            data(sum).assert_eq(&data(leaf.grad(&at_once)), true);
        }
    }
}
