//! Attention over some keys and attention over others, as attention over all of them.

use burn::tensor::{DType, Tensor};
use burn_titan_kernels::Attention;

/// Stands for the log-sum-exp of no scores, so that no infinity is subtracted from another.
const NONE: f32 = -1e30;

/// Partial results for the same queries, merged in the order they came, in f32 (Liu et al., 2023): with
/// `L = log(exp(L1) + exp(L2))`, the output is `exp(L1 - L) O1 + exp(L2 - L) O2`.
#[derive(Debug, Default)]
pub(super) struct Merged(Option<Part>);

/// An output, and the log-sum-exp with [`NONE`] for minus infinity, both in f32.
#[derive(Debug)]
struct Part {
    output: Tensor<4>,
    log_sum_exp: Tensor<3>,
}

impl Merged {
    /// Takes the result over other keys.
    pub(super) fn add(&mut self, attention: Attention) {
        let output = attention.output.cast(DType::F32);
        let other = Part { output, log_sum_exp: attention.log_sum_exp.clamp_min(NONE) };
        self.0 = Some(match self.0.take() {
            None => other,
            Some(part) => part.with(other),
        });
    }

    /// The result over all keys, for these queries (`[batch, heads, queries, head_dim]`) and in their dtype.
    pub(super) fn finish(self, query: &Tensor<4>) -> Attention {
        let (device, dtype) = (query.device(), query.dtype());
        let [batch, heads, queries, _] = query.dims();
        match self.0 {
            None => Attention {
                output: Tensor::zeros(query.dims(), (&device, dtype)),
                log_sum_exp: Tensor::full(
                    [batch, heads, queries],
                    f32::NEG_INFINITY,
                    (&device, DType::F32),
                ),
            },
            Some(Part { output, log_sum_exp }) => {
                let empty = log_sum_exp.clone().lower_equal_elem(NONE / 2.0);
                let log_sum_exp = log_sum_exp.mask_fill(empty, f32::NEG_INFINITY);
                Attention { output: output.cast(dtype), log_sum_exp }
            }
        }
    }
}

impl Part {
    fn with(self, other: Self) -> Self {
        let top = self.log_sum_exp.clone().max_pair(other.log_sum_exp.clone());
        let weight = |part: &Self| (part.log_sum_exp.clone() - top.clone()).exp();
        let weights = [weight(&self), weight(&other)];
        let sum = weights[0].clone() + weights[1].clone();
        let share = |output: Tensor<4>, weight: &Tensor<3>| {
            output * (weight.clone() / sum.clone()).unsqueeze_dim::<4>(3)
        };
        Self {
            output: share(self.output, &weights[0]) + share(other.output, &weights[1]),
            log_sum_exp: top + sum.log(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn part(output: [f32; 4], log_sum_exp: [f32; 4]) -> Attention {
        let device = Device::flex();
        Attention {
            output: Tensor::<1>::from_floats(output, &device).reshape([1, 1, 4, 1]),
            log_sum_exp: Tensor::<1>::from_floats(log_sum_exp, &device).reshape([1, 1, 4]),
        }
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn a_query_that_sees_nothing_anywhere_gives_zero_and_minus_infinity() {
        const NOTHING: f32 = f32::NEG_INFINITY;
        let mut merged = Merged::default();
        merged.add(part([0.0, 3.0, 0.0, 1.0], [NOTHING, 1.5, NOTHING, 90.0]));
        merged.add(part([0.0, 0.0, 7.0, 3.0], [NOTHING, NOTHING, -80.0, 90.0]));
        merged.add(part([0.0, 0.0, 0.0, 5.0], [NOTHING, NOTHING, NOTHING, 90.0]));
        let all = merged.finish(&Tensor::zeros([1, 1, 4, 1], &Device::flex()));
        let (output, sums) = (values(all.output), values(all.log_sum_exp));
        assert_eq!(output[..3], [0.0, 3.0, 7.0]);
        assert_eq!(sums[..3], [NOTHING, 1.5, -80.0]);
        assert!((output[3] - 3.0).abs() < 1e-6 && (sums[3] - 90.0 - 3.0_f32.ln()).abs() < 1e-5);
    }

    #[test]
    fn of_no_keys_there_is_nothing() {
        let query = Tensor::<4>::ones([1, 2, 3, 4], (&Device::flex(), DType::BF16));
        let Attention { output, log_sum_exp } = Merged::default().finish(&query);
        assert_eq!((output.dims(), output.dtype()), ([1, 2, 3, 4], DType::BF16));
        assert_eq!(values(output.cast(DType::F32)), [0.0; 24]);
        assert_eq!(values(log_sum_exp), [f32::NEG_INFINITY; 6]);
    }
}
