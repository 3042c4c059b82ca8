//! Llama 3 (<https://arxiv.org/abs/2407.21783>).
//!
//! - [`config`]: the sizes and flavors;
//! - [`modules`]: the units of the model;
//! - [`plan`]: how ranks that split matrix products share the parameters, as data;
//! - [`hf`]: names and layouts of Hugging Face folders;
//! - [`family`]: what the platform asks of a family of models.

pub mod config;
pub mod family;
pub mod hf;
pub mod modules;
pub mod plan;

pub use config::LlamaConfig;
pub use family::Llama3;
