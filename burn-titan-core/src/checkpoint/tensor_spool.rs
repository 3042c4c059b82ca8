//! A safetensors file of tensors that come one by one: they wait on the disk, and not in memory, until all are
//! known, for the header comes first.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::durable::{DEFAULT_CHUNK_BYTES, FileError};
use super::tensor::{HostDtype, HostTensor};
use super::tensor_file::{begin, header};

/// Bytes that are copied at once.
const PART: usize = 1 << 20;

/// Tensors that wait in a file.
#[derive(Debug)]
pub(crate) struct TensorSpool {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    name: String,
    dtype: HostDtype,
    shape: Vec<usize>,
    start: u64,
    length: usize,
}

impl TensorSpool {
    /// An empty spool in a new file at `path`, which is deleted with the value.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|error| FileError::new(path, "create the file", error))?;
        Ok(Self { path: path.to_path_buf(), file, entries: vec![], bytes: 0 })
    }

    /// Bytes of the tensors that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub(crate) fn push(&mut self, tensor: &HostTensor) -> Result<(), FileError> {
        let written = self.file.write_all(tensor.data());
        written.map_err(|error| FileError::new(&self.path, "write the file", error))?;
        self.entries.push(Entry {
            name: tensor.name().into(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            start: self.bytes,
            length: tensor.data().len(),
        });
        self.bytes += tensor.data().len() as u64;
        Ok(())
    }

    /// Writes the tensors to a new file as [`write_tensor_file`](super::write_tensor_file) does, and forgets them.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub(crate) fn write_tensor_file(
        &mut self,
        path: &Path,
        metadata: &[(&str, &str)],
    ) -> Result<(), FileError> {
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_by_key(|entry| Reverse(entry.dtype.size()));
        let named =
            entries.iter().map(|e| (e.name.as_str(), e.dtype, e.shape.as_slice(), e.length));
        let mut writer = begin(path, &header(named, metadata), DEFAULT_CHUNK_BYTES)?;
        let unreadable = |error| FileError::new(&self.path, "read the file", error);
        let mut part = vec![0; PART];
        for Entry { start, length, .. } in entries {
            self.file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
            let mut left = length;
            while left > 0 {
                let part = &mut part[..left.min(PART)];
                self.file.read_exact(part).map_err(unreadable)?;
                writer.write(part)?;
                left -= part.len();
            }
        }
        writer.finish()?;
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|error| FileError::new(&self.path, "empty the file", error))?;
        self.bytes = 0;
        Ok(())
    }
}

impl Drop for TensorSpool {
    fn drop(&mut self) {
        // It lies in a folder that is unfinished, or that no longer needs it.
        let _ = fs::remove_file(&self.path);
    }
}
