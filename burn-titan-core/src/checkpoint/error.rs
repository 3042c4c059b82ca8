//! What can be wrong with a checkpoint.

use std::ops::Range;
use std::path::PathBuf;

use super::durable::FileError;
use super::tensor::{HostDtype, TensorError};
use super::tensor_file::TensorFileError;
use super::writers::ExchangeError;

/// What can be wrong with a checkpoint, or with the folder it lies in. Every message names the file
/// and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A safetensors file cannot be read.
    #[error(transparent)]
    TensorFile(#[from] TensorFileError),
    /// A tensor contradicts itself.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The folder has no `index.json`.
    #[error(
        "{}: no such file, so the folder is not a complete checkpoint: choose another step, or \
         delete the folder",
        path.display()
    )]
    NoIndex {
        /// Where the index should be.
        path: PathBuf,
    },
    /// `index.json` cannot be understood.
    #[error(
        "{}: {reason}: restore the file from a copy, or delete the folder to continue from an \
         older step",
        path.display()
    )]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint was written by another version.
    #[error(
        "{}: format version {found}, but this program reads versions up to {supported}: use the \
         program version that wrote it",
        path.display()
    )]
    Version {
        /// The index.
        path: PathBuf,
        /// The version it names.
        found: String,
        /// The newest version read here.
        supported: u32,
    },
    /// A file that the index lists is not there.
    #[error(
        "{}: the file is missing, though index.json lists it: restore it from a copy, or delete \
         the folder to continue from an older step",
        path.display()
    )]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file has another size than the index says.
    #[error(
        "{}: the file has {found} bytes, but index.json says {expected}: it is torn; restore it \
         from a copy, or delete the folder to continue from an older step",
        path.display()
    )]
    Torn {
        /// The file.
        path: PathBuf,
        /// Bytes according to the index.
        expected: u64,
        /// Bytes on the disk.
        found: u64,
    },
    /// A file's contents are not those that were written.
    #[error(
        "{}: checksum {found}{}, but {expected} was written: the file was altered; restore it from a \
         copy, or delete the folder to continue from an older step",
        path.display(),
        of_bytes(range)
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// The bytes that the checksum is of, where they are not all of the file.
        range: Option<Range<u64>>,
        /// Checksum that was written, in hexadecimal.
        expected: String,
        /// Checksum of what is there.
        found: String,
    },
    /// A tensor is not in the checkpoint.
    #[error(
        "{}: no tensor `{name}`{}: continue with the model config that made the checkpoint (its \
         config.yaml)",
        path.display(),
        did_you_mean(nearest)
    )]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The tensor with the most similar name.
        nearest: Option<String>,
    },
    /// A tensor has another shape or element type than the model.
    #[error(
        "{}: tensor `{name}` is {found_dtype} {found_shape:?}, but {dtype} {shape:?} is needed: \
         continue with the model config that made the checkpoint (its config.yaml)",
        path.display()
    )]
    WrongTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Element type that is needed.
        dtype: HostDtype,
        /// Shape that is needed.
        shape: Vec<usize>,
        /// Element type in the file.
        found_dtype: HostDtype,
        /// Shape in the file.
        found_shape: Vec<usize>,
    },
    /// The checkpoint has no more than the model.
    #[error(
        "{}: the checkpoint holds only the model (`checkpoint.last_save_model_only`), so no run can \
         continue from it: delete the folder to continue from an older step, or use it with \
         `generate`, `eval` or `convert`",
        path.display()
    )]
    ModelOnly {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The ranks' pieces do not make a checkpoint.
    #[error(
        "what the ranks wrote is no checkpoint: {reason}: this is a fault of the program; older \
         checkpoints are as they were"
    )]
    Pieces {
        /// What is wrong.
        reason: String,
    },
    /// Another rank could not write its part.
    #[error("rank {rank} could not save its part: {cause}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// What it said.
        cause: String,
    },
    /// A rank does not see the folder that the first rank made.
    #[error(
        "{}: rank 0 made this folder, but it is not here: give all ranks the same folder on a file \
         system that they share",
        path.display()
    )]
    NotShared {
        /// The folder.
        path: PathBuf,
    },
    /// The ranks could not exchange what they wrote.
    #[error("the ranks could not agree on the checkpoint, which was given up: {0}")]
    Exchange(#[from] ExchangeError),
    /// The thread that writes checkpoints cannot be started, or has died.
    #[error("no thread writes checkpoints: {0}")]
    Thread(String),
    /// Two tensors of one checkpoint have the same name.
    #[error("tensor `{name}` is given twice: names must differ over model and optimizer")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// A deferred tensor turned out to be another than was announced.
    #[error(
        "tensor `{name}` was announced as {dtype} {shape:?}, but is `{found_name}`, {found_dtype} \
         {found_shape:?}: this is a fault of the program"
    )]
    NotAsAnnounced {
        /// The name.
        name: String,
        /// Its element type.
        dtype: HostDtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The name that came.
        found_name: String,
        /// The element type that came.
        found_dtype: HostDtype,
        /// The shape that came.
        found_shape: Vec<usize>,
    },
    /// Two files of one checkpoint have the same name, or a name that is none of a file.
    #[error("`{name}` cannot be the name of a further file: choose another")]
    FileName {
        /// The name.
        name: String,
    },
    /// `state.json` is not what the caller expects.
    #[error(
        "{}: {reason}: use the program version that wrote the checkpoint",
        path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process writes to the same folder.
    #[error(
        "{}: another process is saving to this folder: give each run its own `run.output_dir`",
        folder.display()
    )]
    Busy {
        /// The checkpoint folder.
        folder: PathBuf,
    },
    /// There is nothing to continue from.
    #[error(
        "no complete checkpoint in {}: {found}: to start from step 0, remove the folder and set \
         `checkpoint.resume: auto`",
        folder.display()
    )]
    NothingToResume {
        /// The checkpoint folder.
        folder: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A run that must start from step 0 would mix with an older one.
    #[error(
        "{}: the folder already holds checkpoints (newest: step {newest}), but `checkpoint.resume` \
         is `never`: choose another `run.output_dir`, or set `checkpoint.resume: auto`",
        folder.display()
    )]
    HoldsCheckpoints {
        /// The checkpoint folder.
        folder: PathBuf,
        /// The newest step in it.
        newest: u64,
    },
    /// A folder given by the user leads to no checkpoint.
    #[error(
        "no complete checkpoint found; looked at: {looked}: give a folder like \
         `step-00000100`, the checkpoint folder, or the run's output folder"
    )]
    NotFound {
        /// The folders that were looked at, and what each of them is.
        looked: String,
    },
}

fn of_bytes(range: &Option<Range<u64>>) -> String {
    let text = |range: &Range<u64>| format!(" of bytes {} to {}", range.start, range.end);
    range.as_ref().map(text).unwrap_or_default()
}

/// `` (did you mean `x`?)``, or nothing.
pub(super) fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

/// The candidate most similar to `name`, if any is similar at all.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_string())
}
