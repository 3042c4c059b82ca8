//! What happens to the folders of checkpoints: begun aside, given their names, deleted.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::durable::{
    FileError, Lock, create_folder, delete_folder, lock_file, rename_folder, sync_folder,
};
use super::error::CheckpointError;
use super::find::{Aside, FolderName, list, read_folder, step_folder_name};

/// Held by the process that is saving, so that two runs never write to one folder.
pub(crate) const LOCK_FILE: &str = ".lock";

/// A folder that is being written under a name of its own.
#[derive(Debug)]
pub(super) struct Begun {
    /// Where it is written.
    partial: PathBuf,
    /// What it will be called.
    path: PathBuf,
    _lock: FolderLock,
}

impl Begun {
    /// Begins the checkpoint of a step in `folder`: takes the lock, clears what earlier saves left, makes
    /// the folder.
    pub(super) fn new(folder: &Path, step: u64) -> Result<Self, CheckpointError> {
        create(folder)?;
        let lock = lock(folder)?;
        clear_leftovers(folder, lock.0.is_some())?;
        let path = folder.join(step_folder_name(step));
        let partial = aside(&path, Aside::Partial);
        create_folder(&partial, false)?;
        Ok(Self { partial, path, _lock: lock })
    }

    /// Gives the folder, which is complete, its final name. A folder that has the name already is set
    /// aside first and deleted last, so that there is always a complete one under one of the two names.
    pub(super) fn commit(&self) -> Result<(), CheckpointError> {
        let replaced = aside(&self.path, Aside::Replaced);
        let replaces = self.path.exists();
        if replaces {
            rename_folder(&self.path, &replaced)?;
        }
        rename_folder(&self.partial, &self.path)?;
        if let Some(folder) = self.path.parent() {
            sync_folder(folder)?;
        }
        if replaces {
            delete_folder(&replaced)?;
        }
        Ok(())
    }

    /// Deletes what was written: a half-written folder is worth nothing, and the disk may be full.
    pub(super) fn give_up(&self) {
        // The next save will try again.
        let _ = delete_folder(&self.partial);
    }

    /// Where it is written.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// The name under which it is written.
    pub(super) fn partial_name(&self) -> String {
        self.partial.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Deletes the oldest complete checkpoints so that `keep_latest_k` are left (0 keeps all), but never the
/// one of the step just saved.
pub(super) fn prune(
    folder: &Path,
    keep_latest_k: usize,
    saved: u64,
) -> Result<(), CheckpointError> {
    if keep_latest_k == 0 {
        return Ok(());
    }
    let entries = list(folder)?;
    let surplus = entries.len().saturating_sub(keep_latest_k);
    let surplus: Vec<&Path> = entries[..surplus]
        .iter()
        .filter(|entry| entry.step != saved)
        .map(|entry| entry.path.as_path())
        .collect();
    if surplus.is_empty() {
        return Ok(());
    }
    for path in &surplus {
        rename_folder(path, &aside(path, Aside::Deleted))?;
    }
    // Else a crash could leave a folder that has its final name, but not all of its files.
    sync_folder(folder)?;
    for path in &surplus {
        delete_folder(&aside(path, Aside::Deleted))?;
    }
    Ok(())
}

fn create(folder: &Path) -> Result<(), FileError> {
    if folder.is_dir() {
        return Ok(());
    }
    create_folder(folder, true)?;
    match folder.parent() {
        Some(parent) if parent != Path::new("") => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// The lock of a folder, until this is dropped, also by the death of the process; `None` where the file
/// system has no locks.
#[derive(Debug)]
struct FolderLock(Option<File>);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is starting has it open for a
        // moment, and would hold the lock as long.
        if let Some(file) = &self.0 {
            let _ = file.unlock();
        }
    }
}

fn lock(folder: &Path) -> Result<FolderLock, CheckpointError> {
    match lock_file(&folder.join(LOCK_FILE))? {
        Lock::Held(file) => Ok(FolderLock(Some(file))),
        Lock::Busy => Err(CheckpointError::Busy { folder: folder.to_path_buf() }),
        Lock::Unsupported => Ok(FolderLock(None)),
    }
}

/// Clears what earlier saves left unfinished. With the lock held, they are all of dead processes;
/// without locks, only those of this process's number can be known to be.
fn clear_leftovers(folder: &Path, locked: bool) -> Result<(), CheckpointError> {
    let mut doomed = Vec::new();
    for (name, path) in read_folder(folder)? {
        let FolderName::Aside { step, kind, process } = name else { continue };
        if !locked && process != std::process::id() {
            continue;
        }
        let successor = folder.join(step_folder_name(step));
        if kind == Aside::Replaced && !successor.exists() {
            // The crash came between the two renames of a commit.
            rename_folder(&path, &successor)?;
        } else {
            doomed.push(path);
        }
    }
    if !doomed.is_empty() {
        // What takes the place of a doomed folder must have its name for good.
        sync_folder(folder)?;
    }
    Ok(doomed.iter().try_for_each(|path| delete_folder(path))?)
}

fn aside(path: &Path, kind: Aside) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{}", kind.word(), std::process::id()));
    path.with_file_name(name)
}
