//! Every kernel on every backend against its plain-tensor reference in float64.
//!
//! `check` in `support.rs` runs the kernel in f32 on flex and on wgpu, and the reference in f64 on
//! flex; `check_half` does so for f16 and bf16, with bounds that follow from their rounding.

mod adamw;
mod attention;
#[cfg(feature = "wgpu")]
mod attention_matrix;
mod bucket;
mod cross_entropy;
mod differentiable;
mod embedding;
mod grouped_matmul;
mod norm;
mod permute;
mod quantize;
mod reduce;
mod rms_norm;
mod rope;
mod router;
mod support;
mod swiglu;
mod vocabulary;
