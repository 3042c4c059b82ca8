//! Every way to spread a run over ranks gives the numbers of one rank.

mod checkpoints;
mod data;
