//! What DeepSeek-V2 and DeepSeek-V3 (<https://arxiv.org/abs/2405.04434>, <https://arxiv.org/abs/2412.19437>) have but for
//! their experts: multi-head latent attention, and the blocks with a dense feed-forward.
//!
//! - [`config`]: the sizes and flavors;
//! - [`attention`]: the attention;
//! - [`modules`]: a dense block, and how ranks that split matrix products share its parameters.
//!
//! No family of models is made of it yet: all published ones have blocks of experts too.

mod activations;
pub mod attention;
pub mod config;
pub mod modules;

pub use attention::LatentAttention;
pub use config::DeepSeekV3Config;
