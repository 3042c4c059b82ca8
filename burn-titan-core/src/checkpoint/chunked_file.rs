//! A file of a checkpoint, of which no byte is used before its chunk was verified.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::Mmap;
use rayon::prelude::*;

use super::durable::{FileError, checksum};
use super::error::CheckpointError;
use super::record::{Checksum, FileRecord};
use super::tensor_file::{Entry, TensorFileError, map_file, read_header};

/// A memory map whose chunks are verified at first use.
#[derive(Debug)]
pub(super) struct ChunkedFile {
    path: PathBuf,
    map: Mmap,
    chunk_bytes: u64,
    chunks: Vec<Chunk>,
    /// The header of a safetensors file, once it was asked for.
    header: OnceLock<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
struct Chunk {
    expected: Checksum,
    verified: AtomicBool,
}

impl ChunkedFile {
    /// Opens a file that has the size, and as many chunks, as `record` says.
    pub(super) fn open(
        path: &Path,
        record: &FileRecord,
        chunk_bytes: u64,
    ) -> Result<Self, CheckpointError> {
        let map = map_file(path).map_err(|error| match error {
            TensorFileError::Missing { path } => CheckpointError::MissingFile { path },
            error => error.into(),
        })?;
        check_size(path, record, map.len() as u64)?;
        let chunk =
            |expected: &Checksum| Chunk { expected: *expected, verified: AtomicBool::new(false) };
        let chunks = record.chunks.iter().map(chunk).collect();
        Ok(Self { path: path.to_path_buf(), map, chunk_bytes, chunks, header: OnceLock::new() })
    }

    /// These bytes of the file, whose chunks are verified first.
    pub(super) fn bytes(&self, range: Range<u64>) -> Result<&[u8], CheckpointError> {
        let first = range.start / self.chunk_bytes;
        let end = range.end.div_ceil(self.chunk_bytes).max(first);
        self.verify(first as usize..end as usize)?;
        let bytes = self.map.get(range.start as usize..range.end as usize);
        bytes.ok_or_else(|| self.torn(range.end))
    }

    /// Verifies all of the file, and gives it.
    pub(super) fn verified(&self) -> Result<&[u8], CheckpointError> {
        self.verify(0..self.chunks.len())?;
        Ok(&self.map)
    }

    /// What the header of this safetensors file says of a tensor, once all of the file was verified.
    pub(super) fn entry(&self, name: &str) -> Result<Option<&Entry>, CheckpointError> {
        if let Some(header) = self.header.get() {
            return Ok(header.get(name));
        }
        let header = read_header(&self.path, self.verified()?)?;
        Ok(self.header.get_or_init(|| header).get(name))
    }

    /// Verifies these chunks, by their numbers.
    pub(super) fn verify(&self, chunks: Range<usize>) -> Result<(), CheckpointError> {
        let first = chunks.start;
        let Some(chunks) = self.chunks.get(chunks) else {
            return Err(self.torn(self.map.len() as u64));
        };
        let unverified = |(_, chunk): &(usize, &Chunk)| !chunk.verified.load(Ordering::Acquire);
        let chunks = chunks.par_iter().enumerate().filter(unverified);
        chunks.try_for_each(|(number, chunk)| self.verify_chunk(first + number, chunk))
    }

    fn verify_chunk(&self, number: usize, chunk: &Chunk) -> Result<(), CheckpointError> {
        let bytes = self.map.len() as u64;
        // The only chunk of a file of version 1 may be said to be longer than any file.
        let start = (number as u64).saturating_mul(self.chunk_bytes);
        let range = start..start.saturating_add(self.chunk_bytes).min(bytes);
        let found = Checksum(checksum(&self.map[range.start as usize..range.end as usize]));
        if found == chunk.expected {
            chunk.verified.store(true, Ordering::Release);
            return Ok(());
        }
        Err(CheckpointError::Altered {
            path: self.path.clone(),
            range: (self.chunks.len() > 1).then_some(range),
            expected: chunk.expected.to_string(),
            found: found.to_string(),
        })
    }

    fn torn(&self, expected: u64) -> CheckpointError {
        CheckpointError::Torn { path: self.path.clone(), expected, found: self.map.len() as u64 }
    }
}

/// Checks that a file is there and has its size.
pub(super) fn check_file(path: &Path, record: &FileRecord) -> Result<(), CheckpointError> {
    match std::fs::metadata(path) {
        Ok(metadata) => check_size(path, record, metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(CheckpointError::MissingFile { path: path.to_path_buf() })
        }
        Err(error) => Err(FileError::new(path, "read the file's size", error).into()),
    }
}

fn check_size(path: &Path, record: &FileRecord, found: u64) -> Result<(), CheckpointError> {
    let expected = record.bytes;
    match found == expected {
        true => Ok(()),
        false => Err(CheckpointError::Torn { path: path.to_path_buf(), expected, found }),
    }
}
