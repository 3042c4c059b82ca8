//! Standard output, and files that a command writes.

use std::io::{ErrorKind, Write, stdout};
use std::path::Path;

use burn_titan_core::checkpoint::{CheckpointError, FileError};
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

/// Says before the work, not after it, that a file cannot be written where it should.
pub fn check_folder(path: &Path) -> Result<(), CheckpointError> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let kind = match (folder.is_dir(), path.is_dir()) {
        (true, false) => return Ok(()),
        (true, true) => ErrorKind::IsADirectory,
        _ if folder.exists() => ErrorKind::NotADirectory,
        _ => ErrorKind::NotFound,
    };
    Err(FileError::new(path, "create the file", kind.into()).into())
}
