//! Pipeline schedules: which rank runs which stage of the model on which micro-batch, in what order.
//!
//! A model is cut into **stages**, ranges of its units, and every rank of the pipeline owns one or several of them
//! (its *virtual stages*). A [`Schedule`] lists the steps of every rank: forwards, whole backwards, or backwards in
//! two parts. It is a pure function of the ranks, the stages a rank owns and the micro-batches ([`Shape`]), and says
//! nothing about messages, since they follow from it. Ranks count along the pipeline. What is done with it:
//!
//! | module | does |
//! |---|---|
//! | [`schedule`] | the lists of steps, and [`Family`], the names of the schedules that are built in |
//! | [`csv`] | reads a schedule from a file and writes it, in the format of PyTorch and torchtitan |
//! | [`lower`](mod@lower) | inserts the sends and the receives |
//! | [`mod@prove`] | proves that what is to run computes everything once, in order, and waits for nothing for ever |
//! | [`mod@simulate`] | its time line at given costs: the makespan, the bubble, and the activations that are kept |
//! | [`draw`] | draws a time line, simulated or measured, as text and as SVG |
//!
//! # The schedules
//!
//! With `p` ranks, `v` stages a rank, `m` micro-batches, and `F`, `B` = `I` + `W` the time that the forward and the
//! backward (for inputs and for weights) of **one stage** take, every rank idles for the bubble and keeps at most the
//! activations of so many micro-batches of one stage:
//!
//! | name | stages | bubble | activations of rank `r` | from |
//! |---|---|---|---|---|
//! | `gpipe` | 1 | (p - 1)(F + B) | m | [`gpipe()`] |
//! | `1f1b` | 1 | (p - 1)(F + B) | min(p - r, m) | [`one_f_one_b()`] |
//! | `interleaved_1f1b` | v | (p - 1)(F + B) | (v - 1)p + 2(p - r) - 1 | [`interleaved()`] |
//! | `looped_bfs` | v | (p - 1)(F + B) | vm | [`looped_bfs()`] |
//! | `zb1p` | v | (p - 1)(F + I - W) | p, where v = 1 | [`zero_bubble()`] |
//! | `zbv` | 2, as a V | (p - 1)F, none of it between the first step and the last, where F = I = W | 2p | [`zbv()`] |
//! | `dualpipev` | 2, as a V | (p - 1)(F + I - W) | 2p + 1 | [`dual_pipe_v()`] |
//!
//! The functions say from how many micro-batches on this holds; all of them take any number.

pub mod csv;
pub mod draw;
mod dual_pipe_v;
pub mod fault;
mod gpipe;
mod interleaved;
mod looped_bfs;
pub mod lower;
mod one_f_one_b;
pub mod prove;
pub mod schedule;
pub mod simulate;
#[cfg(test)]
mod tests;
mod writer;
mod zbv;
mod zero_bubble;

pub use csv::CsvError;
pub use dual_pipe_v::dual_pipe_v;
pub use fault::{Fault, Reason, Waiting};
pub use gpipe::gpipe;
pub use interleaved::interleaved;
pub use looped_bfs::looped_bfs;
pub use lower::{Lowered, Message, Operation, Value};
pub use one_f_one_b::one_f_one_b;
pub use prove::prove;
pub use schedule::{Family, Kind, Schedule, ScheduleError, Shape, Step};
pub use simulate::{
    Costs, Peaks, SimulateError, Span, StageCosts, TimeLine, Transfer, peaks, simulate,
};
pub use zbv::zbv;
pub use zero_bubble::zero_bubble;
