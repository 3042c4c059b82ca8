//! The command line of burn-titan, for its own binary and for a user's with models of their own:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use burn_titan_models::Llama3;
//!
//! fn main() -> ExitCode {
//!     // .with_attention::<MyAttention>("my_attention") makes `model.attention: my_attention` work.
//!     burn_titan_cli::main(burn_titan_models::registry().with(Llama3::default()))
//! }
//! ```
//!
//! One module a command; `rank` and `threads` run a command on one rank of several. Exit codes: 0 done; 1 the
//! run failed; 2 the command line, the config, the data, a checkpoint, the device or what the launcher says is
//! wrong; 138 another rank is lost or late.

mod allocator;
mod arguments;
mod bench;
mod doctor;
mod evaluate;
mod generate;
mod kernels;
mod output;
mod plan;
mod rank;
mod ranks;
mod schema;
mod stop;
mod threads;
mod train;

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;

use burn_titan_core::inference::convert;
use burn_titan_core::model::Registry;
use burn_titan_core::trainer::TrainError;
use clap::Parser;

use arguments::{Arguments, Command, Convert, TokenizerCommand};

/// Runs the command of this process with the models of `registry`.
pub fn main(registry: Registry) -> ExitCode {
    allocator::keep_freed_memory();
    match run(&Arc::new(registry), Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has seen enough.
        Err(TrainError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", train::rendered(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(registry: &Arc<Registry>, command: Command) -> Result<(), TrainError> {
    match command {
        Command::Train { config, ranks } => train::train(registry, config, &ranks),
        Command::Validate { config, ranks } => train::validate(registry, &config, ranks),
        Command::Plan { config, ranks, hardware, json, svg } => {
            plan::print(registry, &config, ranks, hardware, json, svg.as_deref())
        }
        Command::Generate(options) => generate::generate(registry, &options),
        Command::Eval(options) => evaluate::evaluate(registry, &options),
        Command::Convert(Convert::FromHf { folder, out }) => {
            convert::from_hf(&folder, &out, registry)
        }
        Command::Convert(Convert::ToHf { checkpoint, out, tokenizer }) => {
            convert::to_hf(&checkpoint, &out, tokenizer.as_deref(), registry)
        }
        Command::Tokenizer(TokenizerCommand::Train { vocab_size, out, inputs }) => {
            let tokenizer = burn_titan_core::data::tokenizer::train(vocab_size, &inputs, &out)?;
            output::line(&format!("{}: {} tokens", out.display(), tokenizer.vocab_size()))
        }
        Command::Bench(subject) => bench::run(registry, &subject),
        Command::Schema { markdown } => schema::print(markdown),
        Command::Doctor { kernels: Some(device), dtype, json } => {
            kernels::run(&device, dtype.as_deref(), json.as_deref())
        }
        Command::Doctor { kernels: None, .. } => doctor::print(registry),
    }
}
