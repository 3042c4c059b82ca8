//! DeepSeek-V2 and DeepSeek-V3 (<https://arxiv.org/abs/2405.04434>, <https://arxiv.org/abs/2412.19437>): multi-head latent
//! attention, and experts of which some are shared, behind a few dense blocks.
//!
//! - [`config`]: the sizes and flavors;
//! - [`attention`]: the attention;
//! - [`modules`]: the model, and how ranks that split matrix products share its parameters;
//! - `hf`: `config.json` of Hugging Face, in two styles, and names there.

mod activations;
pub mod attention;
pub mod config;
mod flavors;
mod hf;
pub mod modules;

pub use attention::LatentAttention;
pub use config::DeepSeekV3Config;

use crate::family::Family;

/// The DeepSeek family.
pub type DeepSeekV3 = Family<DeepSeekV3Config>;

impl Default for DeepSeekV3 {
    /// With [`LatentAttention`] as `fused`.
    fn default() -> Self {
        Self::new(modules::model)
    }
}
