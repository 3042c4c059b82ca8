//! The `burn-titan` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    burn_titan_cli::main(burn_titan_models::registry())
}
