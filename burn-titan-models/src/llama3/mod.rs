//! Llama 3 (<https://arxiv.org/abs/2407.21783>).
//!
//! - [`config`]: the sizes and flavors;
//! - [`modules`]: the model, and how ranks that split matrix products share its parameters;
//! - [`hf`]: names and layouts of Hugging Face folders.

pub mod config;
pub mod hf;
pub mod modules;

pub use config::LlamaConfig;

use crate::attention::{Attention, FusedAttention};
use crate::family::Family;

/// The Llama 3 family, with the attention modules that its blocks can use.
pub type Llama3 = Family<LlamaConfig>;

impl Default for Llama3 {
    /// With [`FusedAttention`] as `fused`.
    fn default() -> Self {
        Self::new(modules::model::<FusedAttention>)
    }
}

impl Llama3 {
    /// Adds an attention module under the name that `model.attention` picks it by.
    pub fn with_attention<A: Attention>(self, name: &str) -> Self {
        self.with_model(name, modules::model::<A>)
    }
}
