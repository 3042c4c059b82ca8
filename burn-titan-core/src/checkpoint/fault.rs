//! Stops what is done to the disk below a folder, at a point of the test's choice.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::durable::Change;

/// What happens at the chosen point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing; changes are counted.
    None,
    /// Nothing is done any more, and all that was done stays.
    Stop,
    /// Nothing is done any more, and all that was not synced is lost, but for deletions.
    PowerCut,
    /// The disk is full, for this once.
    Refuse,
    /// The process says so on standard output, and waits to be killed.
    AwaitKill,
}

/// A folder under watch, until this is dropped.
pub(super) struct Watch(Arc<Mutex<State>>);

struct State {
    folder: PathBuf,
    fault: Fault,
    at: usize,
    seen: usize,
    unsynced: Vec<Unsynced>,
}

/// What a power cut would undo.
enum Unsynced {
    Data(PathBuf),
    Name(PathBuf),
    Rename { from: PathBuf, to: PathBuf },
}

static WATCHED: Mutex<Vec<Arc<Mutex<State>>>> = Mutex::new(Vec::new());

impl Watch {
    /// Meets the `at`-th change (from 1) below `folder` with `fault`.
    pub(super) fn new(folder: &Path, fault: Fault, at: usize) -> Self {
        let folder = folder.to_path_buf();
        let state = State { folder, fault, at, seen: 0, unsynced: vec![] };
        let state = Arc::new(Mutex::new(state));
        WATCHED.lock().unwrap_or_else(PoisonError::into_inner).push(state.clone());
        Self(state)
    }

    /// Changes so far.
    pub(super) fn seen(&self) -> usize {
        self.0.lock().unwrap().seen
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|state| !Arc::ptr_eq(state, &self.0));
    }
}

/// Called before each change of the disk.
pub(super) fn before(change: Change<'_>, path: &Path) -> io::Result<()> {
    let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for state in watched {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if path.starts_with(&state.folder) {
            state.meet(change, path)?;
        }
    }
    Ok(())
}

impl State {
    fn meet(&mut self, change: Change<'_>, path: &Path) -> io::Result<()> {
        self.seen += 1;
        let stopped = || Err(io::Error::other("stopped by the test"));
        match self.fault {
            Fault::Stop if self.seen >= self.at => return stopped(),
            Fault::PowerCut if self.seen >= self.at => {
                self.lose_unsynced();
                return stopped();
            }
            Fault::Refuse if self.seen == self.at => {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Fault::AwaitKill if self.seen == self.at => {
                println!("\nreached {}", self.at);
                io::stdout().flush()?;
                loop {
                    std::thread::park();
                }
            }
            _ => {}
        }
        self.note(change, path);
        Ok(())
    }

    fn note(&mut self, change: Change<'_>, path: &Path) {
        match change {
            Change::CreateFolder | Change::CreateFile => {
                self.unsynced.push(Unsynced::Name(path.into()));
            }
            Change::Write => self.unsynced.push(Unsynced::Data(path.into())),
            Change::SyncFile => {
                self.unsynced.retain(|one| !matches!(one, Unsynced::Data(file) if file == path));
            }
            Change::SyncFolder => self.unsynced.retain(|one| match one {
                Unsynced::Data(_) => true,
                Unsynced::Name(name) | Unsynced::Rename { to: name, .. } => {
                    name.parent() != Some(path)
                }
            }),
            Change::RenameTo(to) => {
                for one in &mut self.unsynced {
                    let (Unsynced::Data(name) | Unsynced::Name(name)) = one else { continue };
                    if let Ok(rest) = name.strip_prefix(path) {
                        *name = to.components().chain(rest.components()).collect();
                    }
                }
                self.unsynced.push(Unsynced::Rename { from: path.into(), to: to.into() });
            }
            Change::Delete => {}
        }
    }

    fn lose_unsynced(&mut self) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let (renames, others): (Vec<_>, Vec<_>) =
            unsynced.into_iter().partition(|one| matches!(one, Unsynced::Rename { .. }));
        // Names are those of now, so that renames are undone after all else.
        for one in others.into_iter().chain(renames.into_iter().rev()) {
            match one {
                Unsynced::Data(path) if path.exists() => {
                    OpenOptions::new().write(true).truncate(true).open(path).unwrap();
                }
                Unsynced::Name(path) if path.is_dir() => delete(&path),
                Unsynced::Name(path) if path.exists() => fs::remove_file(path).unwrap(),
                Unsynced::Rename { from, to } if to.exists() => fs::rename(to, from).unwrap(),
                _ => {}
            }
        }
    }
}

/// Deletes a folder in which another rank may be at its last change.
fn delete(folder: &Path) {
    while let Err(error) = fs::remove_dir_all(folder) {
        assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty, "{error}");
    }
}
