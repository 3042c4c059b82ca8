//! Every way to spread a run over ranks gives the numbers of one rank.

mod breadth_first;
mod bubble;
mod checkpoints;
mod data;
mod deepseek;
mod equal;
mod experts;
mod latent;
mod page;
mod pipeline;
mod qwen3;
mod rehearsal;
mod split;
mod traffic;
