//! The mathematics of burn-titan: fused operations on Burn tensors.
//!
//! This crate knows no ranks, no models and no configs. All knowledge of Burn's internals (backend
//! extensions, autodiff registration, raw buffers) is here. One folder an operation:
//!
//! - `mod.rs`: the public function, its equation and its paper, and how it is registered: one trait,
//!   implemented by every backend, by autodiff with a backward written by hand, and declared to fusion;
//! - `flex.rs`: the native CPU implementation, forward and backward;
//! - `cube.rs`: CubeCL kernels, for WebGPU and CUDA;
//! - `reference.rs`: the same by plain tensor operations, in f64 if the inputs are: what the tests in
//!   `tests/ops` compare outputs and gradients with, on every backend.

#[cfg(not(feature = "flex"))]
compile_error!("burn-titan-kernels needs the feature `flex`: it is the CPU path and the reference");

pub mod adamw;
pub mod attention;
mod autodiff;
pub mod bucket;
pub mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(feature = "cuda", test))]
pub mod cuda_probe;
pub mod device;
#[cfg(feature = "cuda")]
pub mod device_memory;
pub mod differentiable;
pub mod embedding;
mod flex;
pub mod grouped_matmul;
pub mod inject;
pub mod launches;
pub mod linear;
pub mod norm;
pub mod permute;
pub mod quantize;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod swiglu;
mod wide;

pub use adamw::{AdamwStep, adamw, adamw_with_copy};
pub use attention::{Attention, AttentionMask, Scores, attention, attention_backward};
pub use bucket::{pack, unpack};
pub use cross_entropy::linear_cross_entropy;
pub use differentiable::differentiable;
pub use embedding::embedding;
pub use grouped_matmul::grouped_matmul;
pub use inject::inject_gradient;
pub use linear::{WeightGradients, linear, linear_f32, put_off_weights};
pub use norm::sum_of_squares;
pub use permute::{ExpertOrder, gather_rows, permute, unpermute};
pub use quantize::{Quantized, dequantize, quantize, reduce_quantized};
pub use reduce::reduce_chunks;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use router::{
    ExpertGroups, GroupScore, Routed, RouterScores, Routing, RoutingError, route, route_agreed,
    router_z_loss, sequence_balance_loss, sequence_loads,
};
pub use swiglu::swiglu;
