//! The output folder of a run: held against other runs, and nothing of an earlier run is lost in it.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::{TrainError, checkpoint_dir, output_dir};
use crate::checkpoint::{self, CheckpointError, FileError, Lock, lock_file};
use crate::config::Config;
use crate::executor::Groups;

/// Held by the run that writes to the folder. Not the name of the lock of a save, for checkpoints may
/// lie in the same folder.
const LOCK_FILE: &str = ".run.lock";

/// What a run that starts anew would overwrite.
const RECORDS: [&str; 2] = ["metrics.jsonl", "config.yaml"];

/// As [`enter`], by the first rank, which tells the others what they continue from.
pub(super) fn enter_together(
    config: &Config,
    groups: &Groups,
    device: &Device,
) -> Result<(Option<Lock>, Option<PathBuf>), TrainError> {
    let entered = if groups.world.rank() == 0 { Some(enter(config)?) } else { None };
    let (lock, resume) = entered.map_or((None, None), |(lock, resume)| (Some(lock), resume));
    let text = resume.map(|path| path.display().to_string()).unwrap_or_default();
    let text = groups.told_by(0, &text, device)?;
    Ok((lock, (!text.is_empty()).then(|| PathBuf::from(text))))
}

/// Takes the lock of a run's output folder, which is held until the value is dropped, also by the death
/// of the process; gives it with the checkpoint that the run continues from.
///
/// # Errors
/// Where another run is in the folder, there is no checkpoint but one is required, or a start from
/// step 0 would overwrite a run that can be continued.
pub(super) fn enter(config: &Config) -> Result<(Lock, Option<PathBuf>), TrainError> {
    // A folder that is there is held before it is read; a new one is made after that.
    let held = output_dir(config).is_dir().then(|| hold(config)).transpose()?;
    let resume = match config.checkpoint.enable {
        true => checkpoint::resolve_resume(&checkpoint_dir(config), config.checkpoint.resume)?,
        false => None,
    };
    let lock = held.map_or_else(|| hold(config), Ok)?;
    if resume.is_none() {
        refuse_to_overwrite(config)?;
    }
    Ok((lock, resume))
}

/// Makes the output folder and takes its lock.
fn hold(config: &Config) -> Result<Lock, TrainError> {
    let folder = output_dir(config);
    fs::create_dir_all(&folder).map_err(|error| unwritable(&folder, &error))?;
    match lock_file(&folder.join(LOCK_FILE)).map_err(CheckpointError::from)? {
        Lock::Busy => Err(TrainError::Busy { folder: folder.display().to_string() }),
        lock => Ok(lock),
    }
}

/// The error for an output folder that cannot be written.
pub(super) fn unwritable(folder: &Path, error: &std::io::Error) -> TrainError {
    TrainError::File {
        path: folder.display().to_string(),
        cause: format!("{error}: choose a run.output_dir that can be written"),
    }
}

/// Refuses a start from step 0 in the folder of a run that can be continued.
fn refuse_to_overwrite(config: &Config) -> Result<(), TrainError> {
    let folder = output_dir(config);
    let checkpoints = checkpoint::folder_of_run(&folder);
    match checkpoint::list(&checkpoints)?.pop() {
        None => Ok(()),
        Some(newest) => Err(TrainError::HoldsRun {
            folder: folder.display().to_string(),
            newest: newest.path.display().to_string(),
        }),
    }
}

/// Renames what a run without a checkpoint left, such as `metrics.jsonl` to `metrics.jsonl.1`; gives
/// the new path of its metrics, or `None` where there were none.
pub(super) fn set_aside(folder: &Path) -> Result<Option<PathBuf>, TrainError> {
    let [metrics, _] = RECORDS.map(|name| folder.join(name));
    if fs::metadata(&metrics).map_or(0, |metadata| metadata.len()) == 0 || metrics.is_dir() {
        return Ok(None);
    }
    let aside = |name: &str, number: u64| folder.join(format!("{name}.{number}"));
    let is_free = |number: &u64| RECORDS.iter().all(|name| !aside(name, *number).exists());
    let number = (1..).find(is_free).unwrap_or_default();
    for name in RECORDS {
        let path = folder.join(name);
        if path.exists() {
            fs::rename(&path, aside(name, number))
                .map_err(|error| FileError::new(&path, "rename the file", error))
                .map_err(CheckpointError::from)?;
        }
    }
    Ok(Some(aside(RECORDS[0], number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_records_are_renamed_to_free_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(set_aside(folder.path()).unwrap(), None);
        fs::write(path("metrics.jsonl"), "").unwrap();
        assert_eq!(set_aside(folder.path()).unwrap(), None);
        for (round, name) in ["metrics.jsonl.1", "metrics.jsonl.3"].into_iter().enumerate() {
            fs::write(path("metrics.jsonl"), format!("rows {round}")).unwrap();
            fs::write(path("config.yaml"), format!("config {round}")).unwrap();
            assert_eq!(set_aside(folder.path()).unwrap(), Some(path(name)));
            assert_eq!(fs::read_to_string(path(name)).unwrap(), format!("rows {round}"));
            assert!(RECORDS.iter().all(|name| !path(name).exists()));
            // The next number is taken by one of the two files.
            fs::write(path("config.yaml.2"), "another").unwrap();
        }
        assert_eq!(fs::read_to_string(path("config.yaml.3")).unwrap(), "config 1");
        assert_eq!(fs::read_to_string(path("config.yaml.2")).unwrap(), "another");
    }
}
