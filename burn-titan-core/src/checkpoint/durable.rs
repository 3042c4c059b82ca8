//! Files that are on the disk, not only in the page cache, when a function returns. All that a save does
//! to the disk is done here, so that tests can stop it at any point.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

#[cfg(test)]
use super::fault::before;

/// Bytes of a file that have a checksum of their own. Reading verifies whole chunks, so they should be
/// small beside a shard; 16 MiB of XXH3 take 1 or 2 ms.
pub const DEFAULT_CHUNK_BYTES: u64 = 16 << 20;

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

/// What changes the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<'a> {
    CreateFolder,
    CreateFile,
    Write,
    SyncFile,
    SyncFolder,
    RenameTo(&'a Path),
    Delete,
}

/// Called before each change of the disk; tests stop a save here.
#[cfg(not(test))]
#[inline(always)]
fn before(_: Change<'_>, _: &Path) -> io::Result<()> {
    Ok(())
}

/// Size and checksums of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileDigest {
    /// Size in bytes.
    pub(super) bytes: u64,
    /// 64-bit XXH3 of each chunk, seed 0
    /// ([specification](https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md)). An empty file
    /// has one chunk, which is empty.
    pub(super) chunks: Vec<u64>,
}

/// The checksum of a chunk.
pub(super) fn checksum(chunk: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(chunk)
}

/// Computes a [`FileDigest`] of what goes through.
struct Digester {
    chunk_bytes: u64,
    digest: FileDigest,
    /// Of the chunk that is not full yet.
    hasher: Xxh3,
    pending: u64,
}

impl Digester {
    fn new(chunk_bytes: u64) -> Self {
        let digest = FileDigest { bytes: 0, chunks: vec![] };
        Self { chunk_bytes: chunk_bytes.max(1), digest, hasher: Xxh3::new(), pending: 0 }
    }

    fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let room = usize::try_from(self.chunk_bytes - self.pending).unwrap_or(usize::MAX);
            let (part, rest) = data.split_at(room.min(data.len()));
            self.hasher.update(part);
            self.pending += part.len() as u64;
            self.digest.bytes += part.len() as u64;
            if self.pending == self.chunk_bytes {
                self.end_chunk();
            }
            data = rest;
        }
    }

    fn end_chunk(&mut self) {
        self.digest.chunks.push(self.hasher.digest());
        self.hasher.reset();
        self.pending = 0;
    }

    fn finish(mut self) -> FileDigest {
        if self.pending > 0 || self.digest.chunks.is_empty() {
            self.end_chunk();
        }
        self.digest
    }
}

/// A file whose writes can be stopped by tests.
struct DiskFile {
    file: File,
    path: PathBuf,
}

impl Write for DiskFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        before(Change::Write, &self.path)?;
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a new file, counts and hashes what goes through, and makes it durable at the end.
pub(super) struct DurableWriter {
    file: BufWriter<DiskFile>,
    digester: Digester,
}

impl DurableWriter {
    pub(super) fn create(path: &Path, chunk_bytes: u64) -> Result<Self, FileError> {
        let file = before(Change::CreateFile, path).and_then(|()| File::create(path));
        let file = file.map_err(|error| FileError::new(path, "create the file", error))?;
        let file = DiskFile { file, path: path.to_path_buf() };
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { file, digester: Digester::new(chunk_bytes) })
    }

    /// Bytes written so far.
    pub(super) fn position(&self) -> u64 {
        self.digester.digest.bytes
    }

    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), FileError> {
        self.digester.update(data);
        self.file.write_all(data).map_err(|error| self.failed(error))
    }

    pub(super) fn finish(mut self) -> Result<FileDigest, FileError> {
        self.file.flush().map_err(|error| self.failed(error))?;
        let DiskFile { file, path } = self.file.get_ref();
        let synced = before(Change::SyncFile, path).and_then(|()| file.sync_all());
        synced.map_err(|error| self.failed(error))?;
        Ok(self.digester.finish())
    }

    fn failed(&self, error: io::Error) -> FileError {
        FileError::new(&self.file.get_ref().path, "write the file", error)
    }
}

/// Writes a whole file durably.
///
/// # Errors
/// [`FileError`] where the file cannot be created or written.
pub(crate) fn write_file(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    write_chunked(path, contents, DEFAULT_CHUNK_BYTES).map(drop)
}

/// As [`write_file`]; gives the digest, in chunks of `chunk_bytes`.
pub(super) fn write_chunked(
    path: &Path,
    contents: &[u8],
    chunk_bytes: u64,
) -> Result<FileDigest, FileError> {
    let mut writer = DurableWriter::create(path, chunk_bytes)?;
    writer.write(contents)?;
    writer.finish()
}

/// Makes a folder, and its `parents` if asked to.
pub(super) fn create_folder(path: &Path, parents: bool) -> Result<(), FileError> {
    let mut builder = DirBuilder::new();
    builder.recursive(parents);
    let made = before(Change::CreateFolder, path).and_then(|()| builder.create(path));
    made.map_err(|error| FileError::new(path, "create the folder", error))
}

/// Gives a folder another name.
pub(super) fn rename_folder(from: &Path, to: &Path) -> Result<(), FileError> {
    let renamed = before(Change::RenameTo(to), from).and_then(|()| fs::rename(from, to));
    renamed.map_err(|error| FileError::new(from, "rename the folder", error))
}

/// Deletes a folder with what is in it.
pub(super) fn delete_folder(path: &Path) -> Result<(), FileError> {
    let delete = || {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            before(Change::Delete, &entry.path())?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        before(Change::Delete, path)?;
        fs::remove_dir(path)
    };
    delete().map_err(|error| FileError::new(path, "delete the folder", error))
}

/// Makes the names inside `folder` durable. Only Unix has (and needs) this.
///
/// # Errors
/// [`FileError`] where the folder cannot be synced.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    if cfg!(unix) {
        before(Change::SyncFolder, folder)
            .and_then(|()| File::open(folder))
            .and_then(|handle| handle.sync_all())
            .map_err(|error| FileError::new(folder, "sync the folder", error))?;
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
    fn digest_is_that_of_the_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let contents: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 253) as u8).collect();
        for chunk_bytes in [1_000_000, 777_777, 999_999, 3_000_000, u64::MAX] {
            let mut writer = DurableWriter::create(&path, chunk_bytes).unwrap();
            for part in contents.chunks(777_777) {
                writer.write(part).unwrap();
            }
            let digest = writer.finish().unwrap();
            assert_eq!(digest.bytes, 3_000_000);
            let chunks = contents.chunks(usize::try_from(chunk_bytes).unwrap());
            assert_eq!(digest.chunks, chunks.map(checksum).collect::<Vec<_>>());
            assert_eq!(fs::read(&path).unwrap(), contents);
        }
        let empty = write_chunked(&path, &[], 10).unwrap();
        assert_eq!(empty, FileDigest { bytes: 0, chunks: vec![checksum(&[])] });
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
        let Ok(mut writer) = DurableWriter::create(Path::new("/dev/full"), 100) else { return };
        let written = writer.write(&[0; 1000]).and_then(|()| writer.finish());
        assert!(matches!(written, Err(FileError::DiskFull { .. })));
    }
}
