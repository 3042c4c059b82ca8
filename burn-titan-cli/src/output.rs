//! Standard output.

use std::io::{Write, stdout};

use burn_titan_core::trainer::TrainError;

/// Writes text at once.
///
/// # Errors
/// [`TrainError::Output`], also where nobody reads any more, as in `burn-titan schema | head`.
pub fn write(text: &str) -> Result<(), TrainError> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(TrainError::Output)
}

/// Writes a line.
///
/// # Errors
/// As [`write`].
pub fn line(text: &str) -> Result<(), TrainError> {
    write(&format!("{text}\n"))
}
