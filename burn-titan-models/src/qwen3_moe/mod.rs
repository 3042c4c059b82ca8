//! Qwen3 with experts (<https://arxiv.org/abs/2505.09388>).
//!
//! As the dense Qwen3, but every token meets some experts in place of one feed-forward.
//!
//! - [`config`]: the sizes and flavors;
//! - [`modules`]: the model, and how ranks that split matrix products share its parameters;
//! - `hf`: `config.json` of Hugging Face, in two styles.

pub mod config;
mod hf;
pub mod modules;

pub use config::Qwen3MoeConfig;

use crate::attention::{Attention, FusedAttention};
use crate::family::Family;

/// The Qwen3 family with experts, with the attention modules that its blocks can use.
pub type Qwen3Moe = Family<Qwen3MoeConfig>;

impl Default for Qwen3Moe {
    /// With [`FusedAttention`] as `fused`.
    fn default() -> Self {
        Self::new(modules::model::<FusedAttention>)
    }
}

impl Qwen3Moe {
    /// Adds an attention module under the name that `model.attention` picks it by. It normalises queries and keys if it
    /// implements [`Attention::with_query_key_norm`].
    pub fn with_attention<A: Attention>(self, name: &str) -> Self {
        self.with_model(name, modules::model::<A>)
    }
}
