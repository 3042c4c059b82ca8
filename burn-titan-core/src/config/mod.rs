//! The configuration of a run: one typed schema, read from YAML, checked as a whole.
//!
//! - [`schema`] has the types; a field's docstring is its help. All else is derived from them: the
//!   JSON Schema for editors ([`json_schema`]), the page `docs/configuration.md` ([`markdown`]) and
//!   the checks, which walk the same schema.
//! - [`load`] reads a file with its `section.key=value` overrides. A config that is wrong gives
//!   [`ConfigErrors`], every problem at once: the line and column, the source underlined, what was
//!   expected, what was found, and the nearest valid name.
//! - [`Draft`] is the same in steps, for those who have more to check (a model's own rules) and want
//!   their problems in the same list.
//!
//! Reading goes through a tree with positions (`node`), into which the overrides are put
//! (`overrides`); the tree is checked against the schema (`diagnose`), and what is sound goes on to
//! the rules across fields (`rules`). Nothing that a file can say makes any of this panic.

mod diagnose;
mod draft;
mod files;
mod node;
mod overrides;
mod pattern;
mod problem;
mod reference;
mod remedy;
mod rules;
pub mod schema;
mod shape;
mod source;
mod suggest;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use draft::{Checks, Draft, LoadedConfig};
pub use pattern::{NamePattern, PatternError};
pub use problem::{ConfigErrors, Origin, Problem};
pub use reference::{json_schema, markdown};
pub use schema::*;
pub use source::SourceMap;
pub use suggest::nearest;

/// Reads and checks the config in `path`, with `section.key=value` overrides put into it first.
///
/// Relative paths in the config start at the working directory; the files they name must exist.
///
/// # Errors
/// Everything that is wrong with the file, the overrides and the files they name.
pub fn load(path: &Path, overrides: &[String]) -> Result<LoadedConfig, ConfigErrors> {
    Draft::read(path, overrides, Checks::default()).finish()
}

/// As [`load`], for the text of a file; `file_name` is only shown.
///
/// # Errors
/// As [`load`].
pub fn parse(
    file_name: &str,
    text: &str,
    overrides: &[String],
) -> Result<LoadedConfig, ConfigErrors> {
    Draft::parse(file_name, text, overrides, Checks::default()).finish()
}

/// Reads what [`to_yaml`] wrote, without the checks of [`load`]: the files it names may be gone.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_resolved(text: &str) -> Result<Config, String> {
    serde_yaml::from_str(text).map_err(|error| error.to_string())
}

/// The config as YAML with every key written out; [`load`] reads it back as the same config.
///
/// # Panics
/// If a path in the config is not UTF-8, which no loaded config has.
pub fn to_yaml(config: &Config) -> String {
    let head = "# The resolved config of a run: every key, defaults included.\n";
    let body = serde_yaml::to_string(config).expect("the paths of a config are UTF-8");
    format!("{head}{body}")
}
