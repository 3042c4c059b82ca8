//! The kernels against float64: golden numbers, derivatives by differences, and bf16.

mod bf16;
mod differences;
mod golden;
