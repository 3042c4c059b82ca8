//! Experts: the same feed-forward many times, of which a row meets one.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use burn_titan_kernels::{grouped_matmul, swiglu};

/// `w2(silu(w1 x) * (w3 x))` of each expert. Weights are `[experts, in, out]`.
#[derive(Module, Debug)]
pub struct Experts {
    w1: Param<Tensor<3>>,
    w2: Param<Tensor<3>>,
    w3: Param<Tensor<3>>,
}

impl Experts {
    /// Experts from `dim` through `expert_dim` and back. Allocates nothing.
    pub fn new(experts: usize, dim: usize, expert_dim: usize, device: &Device) -> Self {
        let weight = |from, to| Initializer::Zeros.init([experts, from, to], device);
        Self {
            w1: weight(dim, expert_dim),
            w2: weight(expert_dim, dim),
            w3: weight(dim, expert_dim),
        }
    }

    /// What each row's expert makes of it: `[rows, dim]`, in the order of experts, of which each has so many.
    pub fn forward(&self, rows: Tensor<2>, counts: &[usize]) -> Tensor<2> {
        let gate = grouped_matmul(rows.clone(), self.w1.val(), counts);
        let up = grouped_matmul(rows, self.w3.val(), counts);
        grouped_matmul(swiglu(gate, up), self.w2.val(), counts)
    }

    /// Experts of this rank, and the width of the middle of each here.
    pub(super) fn sizes(&self) -> [usize; 2] {
        let [experts, _, expert_dim] = self.w1.lazy_shape().dims();
        [experts, expert_dim]
    }
}
