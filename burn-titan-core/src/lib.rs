//! One training run, from its YAML to its last checkpoint.
//!
//! - [`config`]: the typed schema, its checks and its reference page;
//! - [`data`]: files to batches of token ids;
//! - [`model`]: what a model is to the platform: units, families, initial values;
//! - [`executor`]: runs a step's program on real tensors;
//! - [`optim`], [`lr_schedule`]: optimizers and the learning rate;
//! - [`checkpoint`], [`hf`]: saving, resuming, Hugging Face folders; [`writers`]: ranks that save together;
//! - [`metrics`]: what a run leaves to be read;
//! - [`plan`]: what a run takes, counted before it begins;
//! - [`trainer`]: puts all of it together; [`inference`], [`sampling`]: using a trained model.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod executor;
pub mod hf;
pub mod inference;
pub mod lr_schedule;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod plan;
mod quiet;
pub mod sampling;
pub mod trainer;
pub mod writers;
