//! Crash-safe checkpoints: tensors on the host, written aside by all ranks at once, checksummed, renamed.
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
//!     index.json                 format version, every file's bytes and checksums, every tensor
//! ```
//!
//! Where several ranks write, each has files of its own (`model-rank-00003.safetensors`), with the
//! [`Region`]s of the tensors that it holds; the index says which file has which, and it is checked that
//! they make whole tensors. A reader asks for any region, whatever regions were saved, and reads no more
//! than the chunks of the files that it needs.
//!
//! **A folder under a final name is complete.** [`save`] writes to `step-N.partial-PID`, makes every
//! file durable, writes `index.json` last, then renames the folder. What a crash can leave behind
//! are `.partial-`, `.replaced-` and `.deleted-` folders, which no reader takes for a checkpoint
//! (but for a replaced one whose successor never arrived) and which the next [`save`] clears. Where one
//! rank fails, the save fails on all.
//!
//! **Nothing is used before it was checked.** [`open`] verifies the index and the sizes;
//! [`Checkpoint`] verifies a chunk's checksum before the first of its bytes is handed out.
//!
//! Nothing here knows a tensor library, a model or a mesh.

mod chunked_file;
mod deferred;
mod durable;
mod error;
#[cfg(test)]
mod fault;
mod find;
mod folder;
mod index;
mod open;
mod rank_files;
mod record;
mod region;
mod save;
mod saver;
mod tensor;
mod tensor_file;
mod tensor_spool;
#[cfg(test)]
mod tests;
mod tiling;
mod writers;

pub use deferred::DeferredTensor;
pub use durable::{DEFAULT_CHUNK_BYTES, FileError};
pub(crate) use durable::{Lock, lock_file, sync_folder, write_file};
pub use error::CheckpointError;
pub(crate) use find::folder_of_run;
pub use find::{CheckpointEntry, latest, list, locate, resolve_resume};
pub(crate) use folder::LOCK_FILE;
pub use open::{Checkpoint, TensorEntry, open};
pub use rank_files::{DEFAULT_MAX_FILE_BYTES, Layout};
pub use record::TensorGroup;
pub use region::{Region, RegionError, Run};
pub use save::{CheckpointContent, save, save_among};
pub use saver::Saver;
pub use tensor::{HostDtype, HostTensor, TensorError};
pub use tensor_file::{TensorFile, TensorFileError, TensorView, write_tensor_file};
pub(crate) use tensor_spool::TensorSpool;
pub use writers::{ExchangeError, OneWriter, Writers};
