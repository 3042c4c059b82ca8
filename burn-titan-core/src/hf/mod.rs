//! Hugging Face model folders: `config.json` and safetensors weights, for any model.
//!
//! [`HfFolder`] reads a folder as `transformers` writes it, with one weight file or several and an
//! index; [`HfWriter`] writes one. What the tensors mean is for the model crate to know.

mod error;
mod folder;
mod writer;

pub use error::HfError;
pub use folder::HfFolder;
pub use writer::{DEFAULT_MAX_SHARD_BYTES, HfWriter};

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";
