//! Llama 3 (<https://arxiv.org/abs/2407.21783>).
//!
//! - [`config`]: the sizes and flavors;
//! - [`modules`]: the model itself, plain Burn modules, one unit each for embedding, block and head;
//! - [`plan`]: how ranks that split matrix products share the parameters, as data;
//! - [`initial`]: the distributions of initial values;
//! - [`hf`]: names and layouts of Hugging Face folders;
//! - [`family`]: what the platform asks of a family of models.

mod activations;
pub mod config;
pub mod family;
pub mod hf;
pub mod initial;
pub mod modules;
pub mod plan;

pub use config::LlamaConfig;
pub use family::Llama3;
