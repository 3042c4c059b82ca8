//! Tests of the configuration as a whole: broken configs with their exact messages, mutations,
//! files, and what is generated from the schema.

mod broken;
mod files;
mod generated;
mod mutations;

use super::{Checks, ConfigErrors, Draft, LoadedConfig};

/// The smallest config that is valid.
const SMALLEST: &str = "data: {train: [{path: a.bin}]}\n";

/// A config that sets nearly every key.
const LARGE: &str = include_str!("large.yaml");

/// Checks a text as the file `a.yaml`, without looking for the files it names.
fn parse(text: &str, overrides: &[&str]) -> Result<LoadedConfig, ConfigErrors> {
    let overrides: Vec<_> = overrides.iter().map(|word| (*word).to_owned()).collect();
    Draft::parse("a.yaml", text, &overrides, Checks { files: false, ranks: None }).finish()
}

/// The problems, one a line.
fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    match parse(text, overrides) {
        Ok(_) => vec![],
        Err(errors) => errors.problems().iter().map(ToString::to_string).collect(),
    }
}
