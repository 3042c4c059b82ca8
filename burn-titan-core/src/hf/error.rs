//! What can be wrong with a Hugging Face folder.

use std::path::PathBuf;

use crate::checkpoint::{FileError, TensorFileError};

/// What can be wrong with a Hugging Face folder. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum HfError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A weight file is missing or cannot be read, or lacks a tensor.
    #[error(transparent)]
    TensorFile(#[from] TensorFileError),
    /// A file that every folder has is not there.
    #[error("{}: no such file: {remedy}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A JSON file cannot be understood.
    #[error("{}: {reason}: fetch the file again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index lists a tensor that its file does not have.
    #[error(
        "{}: tensor `{name}` should be in {shard}, but is not: fetch both files again, from the \
         same version",
        index.display()
    )]
    AbsentTensor {
        /// The index.
        index: PathBuf,
        /// The tensor.
        name: String,
        /// The file that should have it.
        shard: String,
    },
    /// Two files hold a tensor of the same name, or one is written twice.
    #[error("{}: tensor `{name}` is given twice{}: keep one of them", path.display(), also(other))]
    DuplicateTensor {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The other file.
        other: Option<String>,
    },
    /// The folder to write to holds something already.
    #[error("{}: the folder exists already: choose another, or delete it", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
}

fn also(other: &Option<String>) -> String {
    other.as_ref().map(|file| format!(", also in {file}")).unwrap_or_default()
}
