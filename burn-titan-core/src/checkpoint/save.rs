//! Writing a checkpoint so that a crash at any moment loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::deferred::DeferredTensor;
use super::durable::{FileError, Lock, lock_file, sync_folder, write_file};
use super::error::CheckpointError;
use super::find::{Aside, FolderName, list, read_folder, step_folder_name};
use super::index::{
    CONFIG_FILE, FileRecord, INDEX_FILE, Index, STATE_FILE, TensorGroup, TensorRecord,
};
use super::tensor_file::write_deferred;

/// Largest safetensors file that is written, in bytes, unless a single tensor is larger.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 4 << 30;

/// Held by the process that is saving, so that two runs never write to one folder.
pub(crate) const LOCK_FILE: &str = ".lock";

/// What goes into a checkpoint. Tensor names must differ over model and optimizer.
#[derive(Debug)]
pub struct CheckpointContent<'a, E = CheckpointError> {
    /// Optimizer steps done.
    pub step: u64,
    /// Parameters and buffers of the model.
    pub model: Vec<DeferredTensor<'a, E>>,
    /// State of the optimizer.
    pub optimizer: Vec<DeferredTensor<'a, E>>,
    /// Whatever else is needed to continue: the data cursor, for example.
    pub state: &'a Value,
    /// Text of the run's resolved config.
    pub config_yaml: &'a str,
    /// Names and contents of files that are kept, and verified, with the rest: the tokenizer's.
    pub further_files: &'a [(&'a str, &'a [u8])],
    /// Size above which tensors go to a further file, in bytes ([`DEFAULT_MAX_FILE_BYTES`]).
    pub max_file_bytes: u64,
}

/// Writes a checkpoint to `<folder>/step-00000100`, then deletes the oldest complete ones so that
/// `keep_latest_k` are left (0 keeps all). Returns the new folder's path.
///
/// The new checkpoint is durable and visible before anything old is touched; a folder of the same
/// step is replaced. Unfinished folders of dead processes are cleared first. Of the tensors, one at a
/// time is held.
///
/// # Errors
/// [`CheckpointError`] where a name is used twice, where another process is saving to the folder,
/// or where the disk refuses; what a tensor's `read` returns. The older checkpoints are then as they
/// were.
pub fn save<E: From<CheckpointError>>(
    folder: &Path,
    keep_latest_k: usize,
    content: CheckpointContent<'_, E>,
) -> Result<PathBuf, E> {
    check_names(&content)?;
    create_folder(folder).map_err(CheckpointError::from)?;
    let lock = lock(folder)?;
    clear_leftovers(folder, lock.is_some())?;
    let step = content.step;
    let path = folder.join(step_folder_name(step));
    let partial = aside(&path, Aside::Partial);
    if let Err(error) = write_content(&partial, content) {
        // A half-written folder is worth nothing, and the disk may be full.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    commit(&partial, &path)?;
    prune(folder, keep_latest_k, step)?;
    Ok(path)
}

fn check_names<E>(content: &CheckpointContent<'_, E>) -> Result<(), CheckpointError> {
    let mut seen = BTreeSet::new();
    for tensor in content.model.iter().chain(&content.optimizer) {
        if !seen.insert(tensor.name()) {
            return Err(CheckpointError::DuplicateTensor { name: tensor.name().into() });
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

fn create_folder(folder: &Path) -> Result<(), FileError> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|e| FileError::new(folder, "create the folder", e))?;
    match folder.parent() {
        Some(parent) if parent != Path::new("") => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Takes the folder's lock; it is released when the file is closed, also by the death of the
/// process. `None` where the file system has no locks.
fn lock(folder: &Path) -> Result<Option<File>, CheckpointError> {
    match lock_file(&folder.join(LOCK_FILE))? {
        Lock::Held(file) => Ok(Some(file)),
        Lock::Busy => Err(CheckpointError::Busy { folder: folder.to_path_buf() }),
        Lock::Unsupported => Ok(None),
    }
}

/// Clears what earlier saves left unfinished. With the lock held, they are all of dead processes;
/// without locks, only those of this process's number can be known to be.
fn clear_leftovers(folder: &Path, locked: bool) -> Result<(), CheckpointError> {
    for (name, path) in read_folder(folder)? {
        let FolderName::Aside { step, kind, process } = name else { continue };
        if !locked && process != std::process::id() {
            continue;
        }
        let successor = folder.join(step_folder_name(step));
        if kind == Aside::Replaced && !successor.exists() {
            // The crash came between the two renames of `commit`.
            rename(&path, &successor)?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}

fn write_content<E: From<CheckpointError>>(
    partial: &Path,
    content: CheckpointContent<'_, E>,
) -> Result<(), E> {
    let created = fs::create_dir(partial);
    created.map_err(|e| CheckpointError::from(FileError::new(partial, "create the folder", e)))?;
    let mut files = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    let groups = [(TensorGroup::Model, content.model), (TensorGroup::Optimizer, content.optimizer)];
    for (group, members) in groups {
        let parts = split(members, content.max_file_bytes);
        let count = parts.len();
        for (number, part) in parts.into_iter().enumerate() {
            let file = part_name(group.file_stem(), number, count);
            tensors.extend(part.iter().map(|tensor| {
                let (file, shape) = (file.clone(), tensor.shape().to_vec());
                (tensor.name().into(), TensorRecord { group, file, dtype: tensor.dtype(), shape })
            }));
            let digest = write_deferred(&partial.join(&file), part)?;
            files.insert(file, FileRecord::from(digest));
        }
    }
    let state = format!("{:#}\n", content.state);
    let texts = [(STATE_FILE, state.as_bytes()), (CONFIG_FILE, content.config_yaml.as_bytes())];
    for (file, contents) in texts.iter().chain(content.further_files) {
        let written = write_file(&partial.join(file), contents).map_err(CheckpointError::from)?;
        files.insert(file.to_string(), FileRecord::from(written));
    }
    sync_folder(partial).map_err(CheckpointError::from)?;
    Index::new(content.step, files, tensors).write(partial)?;
    Ok(sync_folder(partial).map_err(CheckpointError::from)?)
}

/// Cuts `tensors` into runs of at most `max_bytes`, each of at least one tensor; an empty list is
/// one empty run, so that each group has a file.
fn split<E>(
    tensors: Vec<DeferredTensor<'_, E>>,
    max_bytes: u64,
) -> Vec<Vec<DeferredTensor<'_, E>>> {
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0u64);
    for tensor in tensors {
        let size = tensor.bytes() as u64;
        if !part.is_empty() && bytes.saturating_add(size) > max_bytes {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes = bytes.saturating_add(size);
        part.push(tensor);
    }
    parts.push(part);
    parts
}

/// `model.safetensors`, or `model-00001-of-00003.safetensors` where there are several.
fn part_name(stem: &str, number: usize, parts: usize) -> String {
    match parts {
        1 => format!("{stem}.safetensors"),
        _ => format!("{stem}-{:05}-of-{parts:05}.safetensors", number + 1),
    }
}

/// Gives a complete folder its final name. A folder that has the name already is set aside first and
/// deleted last, so that there is always a complete one under one of the two names.
fn commit(partial: &Path, path: &Path) -> Result<(), CheckpointError> {
    let replaced = aside(path, Aside::Replaced);
    let replaces = path.exists();
    if replaces {
        rename(path, &replaced)?;
    }
    rename(partial, path)?;
    if let Some(folder) = path.parent() {
        sync_folder(folder)?;
    }
    if replaces {
        remove(&replaced)?;
    }
    Ok(())
}

/// Deletes the oldest complete checkpoints, but never the one of the step just saved.
fn prune(folder: &Path, keep_latest_k: usize, saved: u64) -> Result<(), CheckpointError> {
    if keep_latest_k == 0 {
        return Ok(());
    }
    let entries = list(folder)?;
    let surplus = entries.len().saturating_sub(keep_latest_k);
    for entry in entries.iter().take(surplus).filter(|entry| entry.step != saved) {
        let deleted = aside(&entry.path, Aside::Deleted);
        rename(&entry.path, &deleted)?;
        remove(&deleted)?;
    }
    Ok(sync_folder(folder)?)
}

fn aside(path: &Path, kind: Aside) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{}", kind.word(), std::process::id()));
    path.with_file_name(name)
}

fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(|error| FileError::new(from, "rename the folder", error))
}

fn remove(path: &Path) -> Result<(), FileError> {
    fs::remove_dir_all(path).map_err(|error| FileError::new(path, "delete the folder", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::HostTensor;

    #[test]
    fn parts_hold_at_most_the_limit() {
        let tensor = |n: &usize| HostTensor::from_f32("t", &[*n], &vec![0.0; *n]).unwrap().into();
        let sizes = |limit| -> Vec<usize> {
            let tensors: Vec<DeferredTensor> = [3, 1, 4, 9, 1, 1].iter().map(tensor).collect();
            split(tensors, limit).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(u64::MAX), [6]);
        assert_eq!(sizes(16), [2, 1, 1, 2]);
        assert_eq!(sizes(0), [1; 6]);
        assert_eq!(split::<CheckpointError>(vec![], 16).len(), 1);
        assert_eq!(part_name("model", 0, 1), "model.safetensors");
        assert_eq!(part_name("model", 9, 12), "model-00010-of-00012.safetensors");
    }
}
