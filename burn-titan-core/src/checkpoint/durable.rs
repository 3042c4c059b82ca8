//! Files that are on the disk, not only in the page cache, when a function returns.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

/// What the operating system refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No space left on the device, or the quota is used up.
    #[error(
        "{}: the disk is full: free some space, lower `checkpoint.keep_latest_k`, or choose a \
         `run.output_dir` on a larger disk",
        path.display()
    )]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// The caller may not do this.
    #[error("{}: cannot {action}: permission denied: check the owner and the mode", path.display())]
    Permission {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
    },
    /// The folder of a new file does not exist.
    #[error("{}: cannot {action}: there is no such folder: make it first", path.display())]
    NoFolder {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
    },
    /// A file is where a folder should be.
    #[error(
        "{}: cannot {action}: a file is in the way: move it, or choose another path",
        path.display()
    )]
    NotAFolder {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
    },
    /// Any other failure.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl FileError {
    /// The error for `source`, met while trying to `action` the file at `path`.
    pub fn new(path: &Path, action: &'static str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            io::ErrorKind::PermissionDenied => Self::Permission { path, action },
            io::ErrorKind::NotADirectory => Self::NotAFolder { path, action },
            io::ErrorKind::NotFound if action.starts_with("create") => {
                Self::NoFolder { path, action }
            }
            _ => Self::Io { path, action, source },
        }
    }
}

/// Size and checksum of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest {
    /// Size in bytes.
    pub bytes: u64,
    /// 64-bit XXH3 of the contents, seed 0
    /// ([specification](https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md)).
    pub xxh3: u64,
}

impl FileDigest {
    /// The digest of `contents`.
    pub fn of(contents: &[u8]) -> Self {
        Self { bytes: contents.len() as u64, xxh3: xxhash_rust::xxh3::xxh3_64(contents) }
    }
}

/// Writes a new file, counts and hashes what goes through, and makes it durable at the end.
pub(super) struct DurableWriter {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Xxh3,
    bytes: u64,
}

impl DurableWriter {
    pub(super) fn create(path: &Path) -> Result<Self, FileError> {
        let file = File::create(path).map_err(|e| FileError::new(path, "create the file", e))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_path_buf(), file, hasher: Xxh3::new(), bytes: 0 })
    }

    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), FileError> {
        self.hasher.update(data);
        self.bytes += data.len() as u64;
        self.file.write_all(data).map_err(|e| FileError::new(&self.path, "write the file", e))
    }

    pub(super) fn finish(mut self) -> Result<FileDigest, FileError> {
        let failed = |e| FileError::new(&self.path, "write the file", e);
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        Ok(FileDigest { bytes: self.bytes, xxh3: self.hasher.digest() })
    }
}

/// Writes a whole file durably.
///
/// # Errors
/// [`FileError`] where the file cannot be created or written.
pub(crate) fn write_file(path: &Path, contents: &[u8]) -> Result<FileDigest, FileError> {
    let mut writer = DurableWriter::create(path)?;
    writer.write(contents)?;
    writer.finish()
}

/// Makes the names inside `folder` durable. Only Unix has (and needs) this.
///
/// # Errors
/// [`FileError`] where the folder cannot be synced.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    if cfg!(unix) {
        File::open(folder)
            .and_then(|handle| handle.sync_all())
            .map_err(|e| FileError::new(folder, "sync the folder", e))?;
    }
    Ok(())
}

/// What came of an attempt to lock a file.
#[derive(Debug)]
pub(crate) enum Lock {
    /// Held until the file is closed, also by the death of the process.
    Held(File),
    /// Another process holds it.
    Busy,
    /// The file system has no locks.
    Unsupported,
}

/// Takes the exclusive lock of a file, which is made where it does not exist.
///
/// # Errors
/// [`FileError`] where the file cannot be made.
pub(crate) fn lock_file(path: &Path) -> Result<Lock, FileError> {
    let file = File::options().create(true).append(true).open(path);
    let file = file.map_err(|error| FileError::new(path, "create the file", error))?;
    Ok(match file.try_lock() {
        Ok(()) => Lock::Held(file),
        Err(TryLockError::WouldBlock) => Lock::Busy,
        Err(TryLockError::Error(_)) => Lock::Unsupported,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_that_of_the_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let contents: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 253) as u8).collect();
        let mut writer = DurableWriter::create(&path).unwrap();
        for part in contents.chunks(777_777) {
            writer.write(part).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), FileDigest::of(&contents));
        assert_eq!(std::fs::read(&path).unwrap(), contents);
    }

    #[test]
    fn a_full_disk_is_named() {
        let error = FileError::new(Path::new("c/model.safetensors"), "write", {
            io::Error::from(io::ErrorKind::StorageFull)
        });
        assert_eq!(
            error.to_string(),
            "c/model.safetensors: the disk is full: free some space, lower \
             `checkpoint.keep_latest_k`, or choose a `run.output_dir` on a larger disk"
        );
        let error = FileError::new(Path::new("c"), "list the folder", {
            io::Error::from(io::ErrorKind::PermissionDenied)
        });
        assert_eq!(
            error.to_string(),
            "c: cannot list the folder: permission denied: check the owner and the mode"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_device_is_met_before_the_end() {
        let Ok(mut writer) = DurableWriter::create(Path::new("/dev/full")) else { return };
        let written = writer.write(&[0; 1000]).and_then(|()| writer.finish());
        assert!(matches!(written, Err(FileError::DiskFull { .. })));
    }
}
