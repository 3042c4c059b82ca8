//! Qwen3, the dense models (<https://arxiv.org/abs/2505.09388>).
//!
//! As Llama 3, but queries and keys are normalised head by head before they are turned, and heads are wider than their
//! share of the residual stream.
//!
//! - [`config`]: the sizes and flavors;
//! - [`modules`]: the model, and how ranks that split matrix products share its parameters;
//! - `hf`: `config.json` of Hugging Face, in two styles.

pub mod config;
mod hf;
pub mod modules;

pub use config::Qwen3Config;

use crate::attention::{Attention, FusedAttention};
use crate::family::Family;

/// The Qwen3 family, with the attention modules that its blocks can use.
pub type Qwen3 = Family<Qwen3Config>;

impl Default for Qwen3 {
    /// With [`FusedAttention`] as `fused`.
    fn default() -> Self {
        Self::new(modules::model::<FusedAttention>)
    }
}

impl Qwen3 {
    /// Adds an attention module under the name that `model.attention` picks it by. It normalises queries and keys if it
    /// implements [`Attention::with_query_key_norm`].
    pub fn with_attention<A: Attention>(self, name: &str) -> Self {
        self.with_model(name, modules::model::<A>)
    }
}
