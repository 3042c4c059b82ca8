//! The models of burn-titan, as plain single-device Burn modules.
//!
//! One folder a family: its sizes, its modules, its plan, its Hugging Face names. Nothing here knows of ranks, configs of
//! runs or checkpoints. What families share stands beside them:
//!
//! - [`embedding`], [`block`], [`head`]: the units of a model; [`attention`] and [`feed_forward`]: what blocks are made
//!   of, where the trait [`Attention`] is what a custom one implements; [`mod@linear`], [`norm`], [`rotary`]: what those are
//!   made of;
//! - [`tape`]: counts the memory that modules take;
//! - [`config`], [`family`], [`plan`], [`initial`], [`hf`]: what a family answers about its sizes, its parameters, their
//!   initial values, and folders of Hugging Face.

pub mod attention;
pub mod block;
pub mod config;
pub mod deepseek_v3;
pub mod embedding;
pub mod family;
pub mod feed_forward;
pub mod head;
pub mod hf;
pub mod initial;
pub mod linear;
pub mod llama3;
pub mod moe;
pub mod norm;
pub mod plan;
pub mod qwen3;
pub mod qwen3_moe;
pub mod rotary;
pub mod tape;

pub use attention::{Attention, AttentionConfig, FusedAttention};
pub use deepseek_v3::{DeepSeekV3, DeepSeekV3Config};
pub use llama3::{Llama3, LlamaConfig};
pub use qwen3::{Qwen3, Qwen3Config};
pub use qwen3_moe::{Qwen3Moe, Qwen3MoeConfig};

use burn_titan_core::model::Registry;

/// All families of this crate.
pub fn registry() -> Registry {
    Registry::default()
        .with(Llama3::default())
        .with(Qwen3::default())
        .with(Qwen3Moe::default())
        .with(DeepSeekV3::default())
}
