//! The models of burn-titan, as plain single-device Burn modules.
//!
//! One folder a family: its sizes, its modules, its Hugging Face names. Nothing here knows of ranks,
//! configs or checkpoints. What families share stands beside them: [`attention`] (the trait that a
//! block's attention implements, and the module that is used by default), [`mod@linear`], [`norm`], [`rotary`]; [`tape`] counts the
//! memory that modules take.

pub mod attention;
pub mod linear;
pub mod llama3;
pub mod norm;
pub mod rotary;
pub mod tape;

pub use attention::{Attention, AttentionConfig, FusedAttention};
pub use llama3::{Llama3, LlamaConfig};

use burn_titan_core::model::Registry;

/// All families of this crate.
pub fn registry() -> Registry {
    Registry::default().with(Llama3::default())
}
