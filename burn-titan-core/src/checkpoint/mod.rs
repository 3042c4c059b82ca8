//! Crash-safe checkpoints: tensors on the host, written aside, checksummed, renamed.
//!
//! One checkpoint is one folder:
//!
//! ```text
//! checkpoint/step-00000100/
//!     model.safetensors          or model-00001-of-00003.safetensors, ... above a size limit
//!     optimizer.safetensors      likewise
//!     state.json                 step, data cursor, whatever the caller needs to continue
//!     config.yaml                the resolved config of the run
//!     tokenizer.json             and other files that the caller adds
//!     index.json                 format version, every file's bytes and checksum, every tensor
//! ```
//!
//! **A folder under a final name is complete.** [`save`] writes to `step-N.partial-PID`, makes every
//! file durable, writes `index.json` last, then renames the folder. What a crash can leave behind
//! are `.partial-`, `.replaced-` and `.deleted-` folders, which no reader takes for a checkpoint
//! (but for a replaced one whose successor never arrived) and which the next [`save`] clears.
//!
//! **Nothing is used before it was checked.** [`open`] verifies the index and the sizes;
//! [`Checkpoint`] verifies a file's checksum before the first of its bytes is handed out.
//!
//! Nothing here knows a tensor library, a model or a rank.

mod deferred;
mod durable;
mod error;
mod find;
mod index;
mod open;
mod save;
mod tensor;
mod tensor_file;
#[cfg(test)]
mod tests;

pub use deferred::DeferredTensor;
pub use durable::{FileDigest, FileError};
pub(crate) use durable::{Lock, lock_file, sync_folder, write_file};
pub use error::CheckpointError;
pub(crate) use find::folder_of_run;
pub use find::{CheckpointEntry, latest, list, locate, resolve_resume};
pub use index::TensorGroup;
pub use open::{Checkpoint, TensorEntry, open};
pub(crate) use save::LOCK_FILE;
pub use save::{CheckpointContent, DEFAULT_MAX_FILE_BYTES, save};
pub use tensor::{HostDtype, HostTensor, TensorError};
pub use tensor_file::{TensorFile, TensorFileError, TensorView, write_tensor_file};
