//! Whole training runs on flex, through the library.

mod accumulation;
mod auxiliary_losses;
mod custom_attention;
mod determinism;
mod initial_hf;
mod non_finite;
mod precision;
mod recomputation;
mod resume;
mod shapes;
