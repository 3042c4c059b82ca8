//! Writing a checkpoint so that a crash at any moment loses nothing.
//!
//! All ranks of a run write at once: rank 0 begins a folder under a name aside and tells the others; each
//! rank writes its files there; rank 0 gathers what was written, adds the rest, writes the index and gives
//! the folder its name; all ranks hear how it went.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::deferred::DeferredTensor;
use super::durable::{sync_folder, write_chunked};
use super::error::CheckpointError;
use super::find::step_folder_name;
use super::folder::{Begun, prune};
use super::index::{CONFIG_FILE, INDEX_FILE, Index, STATE_FILE};
use super::rank_files::{Layout, RankRecords, Writer, write_group};
use super::record::TensorGroup;
use super::writers::{ExchangeError, OneWriter, Writers};

/// What goes into a checkpoint. Tensor names must differ over model and optimizer. Of several ranks, each
/// gives its parts of the tensors; of the rest, that of rank 0 counts.
#[derive(Debug)]
pub struct CheckpointContent<'a, E = CheckpointError> {
    /// Optimizer steps done.
    pub step: u64,
    /// Parameters and buffers of the model.
    pub model: Vec<DeferredTensor<'a, E>>,
    /// State of the optimizer; `None` for a checkpoint of the model alone, which no run continues from.
    pub optimizer: Option<Vec<DeferredTensor<'a, E>>>,
    /// Whatever else is needed to continue: the data cursor, for example.
    pub state: &'a Value,
    /// Text of the run's resolved config.
    pub config_yaml: &'a str,
    /// Names and contents of files that are kept, and verified, with the rest: the tokenizer's.
    pub further_files: &'a [(&'a str, &'a [u8])],
    /// How tensors are laid out in files.
    pub layout: Layout,
}

/// Writes a checkpoint of a run of one rank to `<folder>/step-00000100`, then deletes the oldest complete
/// ones so that `keep_latest_k` are left (0 keeps all). Returns the new folder's path.
///
/// The new checkpoint is durable and visible before anything old is touched; a folder of the same
/// step is replaced. Unfinished folders of dead processes are cleared first. Of the tensors, one at a
/// time is held.
///
/// # Errors
/// [`CheckpointError`] where a name is used twice, where another process is saving to the folder,
/// or where the disk refuses; what a tensor's `read` returns. The older checkpoints are then as they
/// were.
pub fn save<E: From<CheckpointError> + Display>(
    folder: &Path,
    keep_latest_k: usize,
    content: CheckpointContent<'_, E>,
) -> Result<PathBuf, E> {
    save_among(&OneWriter, folder, keep_latest_k, content)
}

/// As [`save`], by several ranks at once: each writes its parts of the tensors to files of its own in the
/// same folder, and rank 0 makes a checkpoint of them. Where a rank fails, all do.
///
/// # Errors
/// As [`save`]; [`CheckpointError::OtherRank`] with the cause where another rank failed,
/// [`CheckpointError::Pieces`] where the parts do not make whole tensors,
/// [`CheckpointError::Exchange`] where a rank is lost.
pub fn save_among<E: From<CheckpointError> + Display>(
    writers: &dyn Writers,
    folder: &Path,
    keep_latest_k: usize,
    content: CheckpointContent<'_, E>,
) -> Result<PathBuf, E> {
    let head = content.head();
    let names = check_names(&content);
    let (begun, partial) = begin(writers, folder, head.step)?;
    let written = names.map_err(E::from).and_then(|()| write_parts(writers, &partial, content));
    let reports = gather(writers, written.as_ref().map_err(ToString::to_string));
    let ended = match begun {
        Some(begun) => end(writers, &begun, reports, folder, keep_latest_k, &head),
        None => reports.and_then(|_| hear(writers)),
    };
    // A rank knows its own failure best.
    written?;
    ended?;
    Ok(folder.join(step_folder_name(head.step)))
}

/// What of a [`CheckpointContent`] remains when the tensors are gone.
struct Head<'a> {
    step: u64,
    model_only: bool,
    state: &'a Value,
    config_yaml: &'a str,
    further_files: &'a [(&'a str, &'a [u8])],
    layout: Layout,
}

impl<'a, E> CheckpointContent<'a, E> {
    fn head(&self) -> Head<'a> {
        let Self { step, state, config_yaml, further_files, layout, .. } = *self;
        let model_only = self.optimizer.is_none();
        Head { step, model_only, state, config_yaml, further_files, layout }
    }
}

fn check_names<E>(content: &CheckpointContent<'_, E>) -> Result<(), CheckpointError> {
    let mut seen = BTreeSet::new();
    for tensor in content.model.iter().chain(content.optimizer.iter().flatten()) {
        if !seen.insert(&tensor.part.name) {
            return Err(CheckpointError::DuplicateTensor { name: tensor.part.name.clone() });
        }
    }
    let mut seen = BTreeSet::from([STATE_FILE, CONFIG_FILE, INDEX_FILE]);
    for (name, _) in content.further_files {
        let is_plain = Path::new(name).file_name() == Some(name.as_ref());
        if !is_plain || name.ends_with(".safetensors") || !seen.insert(name) {
            return Err(CheckpointError::FileName { name: name.to_string() });
        }
    }
    Ok(())
}

/// Rank 0 begins the folder, and all hear where it is.
fn begin(
    writers: &dyn Writers,
    folder: &Path,
    step: u64,
) -> Result<(Option<Begun>, PathBuf), CheckpointError> {
    if writers.rank() > 0 {
        let name: String = hear(writers)?;
        return Ok((None, folder.join(name)));
    }
    let begun = Begun::new(folder, step);
    let told = tell(writers, begun.as_ref().map(Begun::partial_name));
    let begun = begun?;
    match told {
        Ok(()) => {
            let partial = begun.partial().to_path_buf();
            Ok((Some(begun), partial))
        }
        Err(error) => {
            begun.give_up();
            Err(error)
        }
    }
}

/// Writes this rank's parts of the tensors.
fn write_parts<E: From<CheckpointError>>(
    writers: &dyn Writers,
    partial: &Path,
    content: CheckpointContent<'_, E>,
) -> Result<RankRecords, E> {
    if !partial.is_dir() {
        return Err(CheckpointError::NotShared { path: partial.to_path_buf() }.into());
    }
    let writer = Writer { rank: writers.rank(), size: writers.size() };
    let mut records = RankRecords::default();
    let groups =
        [(TensorGroup::Model, Some(content.model)), (TensorGroup::Optimizer, content.optimizer)];
    for (group, tensors) in groups {
        if let Some(tensors) = tensors {
            write_group(partial, writer, content.layout, group, tensors, &mut records)?;
        }
    }
    Ok(records)
}

/// Rank 0 makes a checkpoint of what all ranks wrote, or gives it up, and tells them.
fn end(
    writers: &dyn Writers,
    begun: &Begun,
    reports: Result<Vec<Report>, CheckpointError>,
    folder: &Path,
    keep_latest_k: usize,
    head: &Head<'_>,
) -> Result<(), CheckpointError> {
    let complete = reports
        .and_then(merge)
        .and_then(|records| write_rest(begun.partial(), records, head))
        .and_then(|()| begun.commit());
    if complete.is_err() {
        begun.give_up();
    }
    let ended = complete.and_then(|()| prune(folder, keep_latest_k, head.step));
    let told = tell(writers, ended.as_ref());
    ended.and(told)
}

/// What all ranks wrote.
fn merge(reports: Vec<Report>) -> Result<RankRecords, CheckpointError> {
    let mut all = RankRecords::default();
    for (rank, report) in reports.into_iter().enumerate() {
        let records = report.map_err(|cause| CheckpointError::OtherRank { rank, cause })?;
        all.merge(records).map_err(|reason| CheckpointError::Pieces { reason })?;
    }
    Ok(all)
}

/// Writes what the ranks have in common, and at last the index.
fn write_rest(
    partial: &Path,
    records: RankRecords,
    head: &Head<'_>,
) -> Result<(), CheckpointError> {
    let RankRecords { mut files, tensors } = records;
    let chunk_bytes = head.layout.chunk_bytes;
    let state = format!("{:#}\n", head.state);
    let texts = [(STATE_FILE, state.as_bytes()), (CONFIG_FILE, head.config_yaml.as_bytes())];
    for (file, contents) in texts.iter().chain(head.further_files) {
        let digest = write_chunked(&partial.join(file), contents, chunk_bytes)?;
        files.insert(file.to_string(), digest.into());
    }
    let index = Index::new(head.step, head.model_only, chunk_bytes, files, tensors);
    index.check().map_err(|reason| CheckpointError::Pieces { reason })?;
    sync_folder(partial)?;
    index.write(partial)?;
    Ok(sync_folder(partial)?)
}

/// What a rank wrote, or why it could not.
type Report = Result<RankRecords, String>;

/// The reports of all ranks, on rank 0.
fn gather(
    writers: &dyn Writers,
    own: Result<&RankRecords, String>,
) -> Result<Vec<Report>, CheckpointError> {
    let reports = writers.gather_to_first(encode(&own)?)?;
    Ok(reports.iter().map(|report| decode(report)).collect::<Result<_, _>>()?)
}

/// Rank 0 tells the others how it went.
fn tell<T: Serialize>(
    writers: &dyn Writers,
    result: Result<T, &CheckpointError>,
) -> Result<(), CheckpointError> {
    let result = result.map_err(|error| match error {
        CheckpointError::OtherRank { rank, cause } => (*rank, cause.clone()),
        error => (0, error.to_string()),
    });
    writers.broadcast(encode(&result)?)?;
    Ok(())
}

/// The other side of [`tell`].
fn hear<T: DeserializeOwned>(writers: &dyn Writers) -> Result<T, CheckpointError> {
    let result: Result<T, (usize, String)> = decode(&writers.broadcast(vec![])?)?;
    result.map_err(|(rank, cause)| CheckpointError::OtherRank { rank, cause })
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, ExchangeError> {
    serde_json::to_vec(message).map_err(ExchangeError::new)
}

fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, ExchangeError> {
    serde_json::from_slice(message).map_err(ExchangeError::new)
}
