//! Finding checkpoints: the newest, the one to resume from, the one a user means.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::durable::FileError;
use super::error::CheckpointError;
use super::index::INDEX_FILE;
use super::open::read_complete_index;
use crate::config::schema::Resume;

/// The resolved config that a run leaves in its output folder.
const RUN_CONFIG: &str = "config.yaml";

/// Folder of the checkpoints in a run's output folder, unless the config says otherwise.
const DEFAULT_FOLDER: &str = "checkpoint";

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// Optimizer steps done.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// What a folder that is no checkpoint was meant to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aside {
    /// Being written.
    Partial,
    /// Complete, but a newer one of the same step is about to take its name.
    Replaced,
    /// Being deleted.
    Deleted,
}

impl Aside {
    const ALL: [Self; 3] = [Self::Partial, Self::Replaced, Self::Deleted];

    /// As it stands in the folder's name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Replaced => "replaced",
            Self::Deleted => "deleted",
        }
    }
}

/// What a name in the checkpoint folder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FolderName {
    /// `step-00000100`.
    Step(u64),
    /// `step-00000100.partial-4711`.
    Aside { step: u64, kind: Aside, process: u32 },
    /// Anything else; it is left alone.
    Other,
}

impl FolderName {
    fn parse(name: &str) -> Self {
        let (step_part, aside) = match name.split_once('.') {
            Some((step_part, aside)) => (step_part, Some(aside)),
            None => (name, None),
        };
        // Only the exact form counts, so that no step has two names.
        let step = step_part.strip_prefix("step-").and_then(|digits| digits.parse().ok());
        let Some(step) = step.filter(|step| step_folder_name(*step) == step_part) else {
            return Self::Other;
        };
        let Some((word, process)) = aside.map(|aside| aside.split_once('-').unwrap_or((aside, "")))
        else {
            return Self::Step(step);
        };
        let kind = Aside::ALL.into_iter().find(|kind| kind.word() == word);
        match (kind, process.parse()) {
            (Some(kind), Ok(process)) => Self::Aside { step, kind, process },
            _ => Self::Other,
        }
    }
}

/// `step-00000100`.
pub(super) fn step_folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// All folders below `folder`, by what their names say.
pub(super) fn read_folder(folder: &Path) -> Result<Vec<(FolderName, PathBuf)>, CheckpointError> {
    let unreadable = |error| FileError::new(folder, "list the folder", error);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(FolderName::parse);
        if let Some(name) = name.filter(|_| path.is_dir()) {
            entries.push((name, path));
        }
    }
    Ok(entries)
}

/// A folder under a step's name, and what keeps it from being a complete checkpoint.
struct Candidate {
    entry: CheckpointEntry,
    problem: Option<CheckpointError>,
}

/// All folders under the names of steps, oldest first. A replaced folder stands for its step where
/// the crash came before its successor had the name.
fn candidates(folder: &Path) -> Result<Vec<Candidate>, CheckpointError> {
    let entries = read_folder(folder)?;
    let named: Vec<u64> = entries
        .iter()
        .filter_map(|(name, _)| match name {
            FolderName::Step(step) => Some(*step),
            _ => None,
        })
        .collect();
    let mut found: Vec<Candidate> = entries
        .into_iter()
        .filter_map(|(name, path)| match name {
            FolderName::Step(step) => Some((step, path)),
            FolderName::Aside { step, kind: Aside::Replaced, .. } if !named.contains(&step) => {
                Some((step, path))
            }
            _ => None,
        })
        .map(|(step, path)| Candidate {
            problem: problem(step, &path),
            entry: CheckpointEntry { step, path },
        })
        .collect();
    found.sort_by_key(|candidate| candidate.entry.step);
    Ok(found)
}

fn problem(step: u64, path: &Path) -> Option<CheckpointError> {
    match read_complete_index(path) {
        Ok(index) if index.step == step => None,
        Ok(index) => Some(CheckpointError::Index {
            path: path.join(INDEX_FILE),
            reason: format!("it says step {}, but the folder is that of step {step}", index.step),
        }),
        Err(error) => Some(error),
    }
}

/// The complete checkpoints in `folder`, by step, oldest first. A folder that does not exist has
/// none.
///
/// # Errors
/// [`CheckpointError::File`] where the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<CheckpointEntry>, CheckpointError> {
    if !exists(folder)? {
        return Ok(vec![]);
    }
    let complete = |candidate: Candidate| candidate.problem.is_none().then_some(candidate.entry);
    Ok(candidates(folder)?.into_iter().filter_map(complete).collect())
}

/// The newest checkpoint in `folder`, or `None` where there is none.
///
/// # Errors
/// Where the newest step's folder is damaged: what is wrong with it. A run never goes back to an
/// older step by itself, because no crash leaves a damaged folder under a final name; it was damaged
/// afterwards, and someone should know.
pub fn latest(folder: &Path) -> Result<Option<CheckpointEntry>, CheckpointError> {
    if !exists(folder)? {
        return Ok(None);
    }
    match candidates(folder)?.pop() {
        Some(Candidate { problem: Some(error), .. }) => Err(error),
        newest => Ok(newest.map(|candidate| candidate.entry)),
    }
}

/// The checkpoint that a run with checkpoints in `folder` continues from; `None` starts from step 0.
///
/// # Errors
/// - [`Resume::Auto`]: the folder exists, but has no complete checkpoint.
/// - [`Resume::Require`]: there is no complete checkpoint.
/// - [`Resume::Never`]: the folder already holds checkpoints.
pub fn resolve_resume(folder: &Path, resume: Resume) -> Result<Option<PathBuf>, CheckpointError> {
    if resume == Resume::Never {
        let newest = if exists(folder)? { candidates(folder)?.pop() } else { None };
        return match newest {
            None => Ok(None),
            Some(candidate) => Err(CheckpointError::HoldsCheckpoints {
                folder: folder.to_path_buf(),
                newest: candidate.entry.step,
            }),
        };
    }
    match latest(folder)? {
        Some(entry) => Ok(Some(entry.path)),
        None if resume == Resume::Auto && !exists(folder)? => Ok(None),
        None => Err(CheckpointError::NothingToResume {
            folder: folder.to_path_buf(),
            found: describe(folder)?,
        }),
    }
}

/// Folder of the checkpoints of the run that wrote to `output`, as its own config says.
pub(crate) fn folder_of_run(output: &Path) -> PathBuf {
    let text = fs::read_to_string(output.join(RUN_CONFIG)).unwrap_or_default();
    // Only this key is read, so that the config of another version will do.
    let config: serde_json::Value = serde_yaml::from_str(&text).unwrap_or_default();
    let folder = config.get("checkpoint").and_then(|section| section.get("folder"));
    output.join(folder.and_then(|folder| folder.as_str()).unwrap_or(DEFAULT_FOLDER))
}

/// The checkpoint that a user means by `path`: a step's folder, the newest step of a checkpoint
/// folder, or the newest step of a run's output folder.
///
/// # Errors
/// [`CheckpointError::NotFound`] says what was looked at; others say what is wrong with the newest.
pub fn locate(path: &Path) -> Result<PathBuf, CheckpointError> {
    let is_step = |name: &std::ffi::OsStr| {
        name.to_str().is_some_and(|name| matches!(FolderName::parse(name), FolderName::Step(_)))
    };
    if path.join(INDEX_FILE).is_file() || (path.file_name().is_some_and(is_step) && path.is_dir()) {
        return Ok(path.to_path_buf());
    }
    let mut looked = Vec::new();
    for folder in [path.to_path_buf(), folder_of_run(path)] {
        if let Some(entry) = latest(&folder)? {
            return Ok(entry.path);
        }
        looked.push(format!("{} ({})", folder.display(), describe(&folder)?));
    }
    Err(CheckpointError::NotFound { looked: looked.join(", ") })
}

/// What a folder without a complete checkpoint is.
fn describe(folder: &Path) -> Result<String, CheckpointError> {
    if !exists(folder)? {
        return Ok("no such folder".into());
    }
    let unfinished = |(name, _): &(FolderName, PathBuf)| {
        matches!(name, FolderName::Aside { kind: Aside::Partial, .. })
    };
    Ok(match read_folder(folder)?.iter().filter(|entry| unfinished(entry)).count() {
        0 => "the folder holds no checkpoint".into(),
        1 => "the folder holds only an unfinished save".into(),
        count => format!("the folder holds only {count} unfinished saves"),
    })
}

fn exists(folder: &Path) -> Result<bool, CheckpointError> {
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(_) => {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            Err(FileError::new(folder, "list the folder", error).into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // The path leads through a file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(FileError::new(folder, "read the folder", error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_exactly() {
        assert_eq!(FolderName::parse("step-00000100"), FolderName::Step(100));
        assert_eq!(FolderName::parse("step-123456789"), FolderName::Step(123_456_789));
        assert_eq!(
            FolderName::parse("step-00000007.replaced-12"),
            FolderName::Aside { step: 7, kind: Aside::Replaced, process: 12 }
        );
        for other in [
            "step-100",
            "step-+0000100",
            "step-00000100.bak",
            "step-00000100.partial-x",
            "step-",
            "step-00000100.",
            "steps",
            "",
            "step-000000100",
            "step-99999999999999999999",
        ] {
            assert_eq!(FolderName::parse(other), FolderName::Other, "{other}");
        }
    }
}
