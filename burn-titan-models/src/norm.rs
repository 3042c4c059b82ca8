//! Root-mean-square normalisation as a module.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};
use burn_titan_kernels::rms_norm;

/// `weight * x / sqrt(mean(x^2) + eps)` over the last dim; see [`burn_titan_kernels::rms_norm()`].
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[dim]`.
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// A norm of width `dim`; allocates nothing until its weight is used.
    pub fn new(dim: usize, eps: f64, device: &Device) -> Self {
        let ones = move |device: &Device, tracked: bool| {
            Tensor::ones([dim], device).set_require_grad(tracked)
        };
        let weight = Param::uninitialized(ParamId::new(), ones, device.clone(), true, [dim].into());
        Self { weight, eps }
    }

    /// `[.., dim]` to `[.., dim]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        rms_norm(x, self.weight.val(), self.eps as f32)
    }
}
