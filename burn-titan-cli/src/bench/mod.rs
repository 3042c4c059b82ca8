//! `bench`: how fast this machine runs the operations of a training step, or the step as a whole, beside
//! what it could do at most.
//!
//! One file a subject. The ceilings are measured in the same process: arithmetic by the best square matrix
//! product, memory by adding one large array to another. "% of ceiling" is the least time that the work
//! can take at these rates, over the median of the times measured; arrays that fit into a cache can be over
//! 100%. `collective` has no ceiling: its peers are other communicators; that of `grouped` is a dense product.

mod arguments;
mod attention;
mod ceilings;
mod collective;
mod compare;
mod grouped;
mod loss;
mod matmul;
mod measure;
mod optimizer;
mod profile;
mod report;
mod step;
mod summary;

use burn_titan_core::model::Registry;
use burn_titan_core::trainer::TrainError;

pub use arguments::{Bench, dtype};
pub use measure::name_of;
pub use report::write_json;

use crate::output;

pub fn run(registry: &Registry, subject: &Bench) -> Result<(), TrainError> {
    let json = match subject {
        Bench::Attention(arguments) => &arguments.measure.json,
        Bench::Collective(arguments) => &arguments.json,
        Bench::Compare(arguments) => &arguments.json,
        Bench::Grouped(arguments) => &arguments.measure.json,
        Bench::Loss(arguments) => &arguments.measure.json,
        Bench::Matmul(arguments) => &arguments.measure.json,
        Bench::Optimizer(arguments) => &arguments.measure.json,
        Bench::Step(arguments) => &arguments.json,
        Bench::Summary(_) => &None,
    };
    if let Some(path) = json {
        output::check_folder(path)?;
    }
    match subject {
        Bench::Attention(arguments) => attention::run(arguments),
        Bench::Collective(arguments) => collective::run(arguments),
        Bench::Compare(arguments) => compare::run(arguments),
        Bench::Grouped(arguments) => grouped::run(arguments),
        Bench::Loss(arguments) => loss::run(arguments),
        Bench::Matmul(arguments) => matmul::run(arguments),
        Bench::Optimizer(arguments) => optimizer::run(arguments),
        Bench::Step(arguments) => step::run(registry, arguments),
        Bench::Summary(arguments) => summary::run(arguments),
    }
}
