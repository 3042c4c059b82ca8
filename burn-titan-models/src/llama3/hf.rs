//! Llama models as Hugging Face has them.
//!
//! Query and key rows keep their order; weights in Meta's own layout, where neighbours turn together, need
//! [`meta_to_hf_rows`].

mod config_json;
mod rope_layout;

pub use rope_layout::{hf_to_meta_rows, meta_to_hf_rows};

#[cfg(test)]
mod tests;
