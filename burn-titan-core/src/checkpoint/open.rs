//! Reading a checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use serde::de::DeserializeOwned;

use super::chunked_file::{ChunkedFile, check_file};
use super::durable::FileError;
use super::error::{CheckpointError, nearest};
use super::index::{CONFIG_FILE, INDEX_FILE, Index, STATE_FILE};
use super::record::{PieceRecord, TensorGroup, TensorRecord};
use super::region::Region;
use super::tensor::{HostDtype, HostTensor, TensorError};

/// What the index says of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorEntry<'a> {
    /// Name of the tensor.
    pub name: &'a str,
    /// Element type.
    pub dtype: HostDtype,
    /// Length of each dim.
    pub shape: &'a [usize],
}

/// An open checkpoint. Files are read by memory map, and only where they are needed; each chunk's
/// checksum is verified before the first of its bytes is used.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    index: Index,
    /// The files by name; empty until they were needed.
    files: BTreeMap<String, OnceLock<ChunkedFile>>,
}

/// Opens the checkpoint in the folder `path` (`.../step-00000100`), and verifies its index, the
/// presence and size of every file, and that the pieces of every tensor are all of it.
///
/// # Errors
/// [`CheckpointError`] that names the file which is missing, torn or altered.
pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let index = read_complete_index(path)?;
    let files = index.files.keys().map(|name| (name.clone(), OnceLock::new())).collect();
    Ok(Checkpoint { path: path.to_path_buf(), index, files })
}

/// The index of the folder `path`, if every file is there with the right size.
pub(super) fn read_complete_index(path: &Path) -> Result<Index, CheckpointError> {
    let index = Index::read(path)?;
    for (name, record) in &index.files {
        check_file(&path.join(name), record)?;
    }
    Ok(index)
}

impl Checkpoint {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Optimizer steps that were done when it was saved.
    pub fn step(&self) -> u64 {
        self.index.step
    }

    /// Refuses a checkpoint from which no run can continue.
    ///
    /// # Errors
    /// [`CheckpointError::ModelOnly`].
    pub fn require_resumable(&self) -> Result<(), CheckpointError> {
        match self.index.model_only {
            true => Err(CheckpointError::ModelOnly { path: self.path.clone() }),
            false => Ok(()),
        }
    }

    /// Text of the run's resolved config.
    ///
    /// # Errors
    /// [`CheckpointError`] where the file was altered or cannot be read.
    pub fn config_yaml(&self) -> Result<String, CheckpointError> {
        let contents = self.file(CONFIG_FILE)?.verified()?;
        std::str::from_utf8(contents).map(String::from).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error);
            FileError::new(&self.path.join(CONFIG_FILE), "read the file", source).into()
        })
    }

    /// What the caller stored to continue from.
    ///
    /// # Errors
    /// [`CheckpointError::State`] where it is not a `T`; others where the file was altered.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        serde_json::from_slice(self.file(STATE_FILE)?.verified()?).map_err(|error| {
            CheckpointError::State { path: self.path.join(STATE_FILE), reason: error.to_string() }
        })
    }

    /// Where a further file of this name is, if the checkpoint was saved with one. It is verified.
    ///
    /// # Errors
    /// [`CheckpointError`] where the file was altered or cannot be read.
    pub fn further_file_path(&self, name: &str) -> Result<Option<PathBuf>, CheckpointError> {
        Ok(self.further_file(name)?.map(|_| self.path.join(name)))
    }

    /// The contents of a further file, if the checkpoint was saved with one of this name.
    ///
    /// # Errors
    /// [`CheckpointError`] where the file was altered or cannot be read.
    pub fn further_file(&self, name: &str) -> Result<Option<&[u8]>, CheckpointError> {
        self.files.contains_key(name).then(|| self.file(name)?.verified()).transpose()
    }

    /// The model's tensors, in the order of their names.
    pub fn model_tensors(&self) -> impl Iterator<Item = TensorEntry<'_>> {
        self.entries(TensorGroup::Model)
    }

    /// The optimizer's tensors, in the order of their names.
    pub fn optimizer_tensors(&self) -> impl Iterator<Item = TensorEntry<'_>> {
        self.entries(TensorGroup::Optimizer)
    }

    /// A copy of one tensor of the model or the optimizer.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], or what is wrong with its files.
    pub fn tensor(&self, name: &str) -> Result<HostTensor, CheckpointError> {
        let record = self.record(name)?;
        let region = Region::whole(&record.shape).map_err(|source| of_tensor(name, source))?;
        let mut data = vec![0; region.elements() * record.dtype.size()];
        self.visit(name, record, &region, |at, bytes| {
            data[at * record.dtype.size()..][..bytes.len()].copy_from_slice(bytes);
        })?;
        Ok(HostTensor::new(name, record.dtype, &record.shape, data))
    }

    /// As [`tensor`](Self::tensor), and the tensor must be of this type and shape.
    ///
    /// # Errors
    /// Also [`CheckpointError::WrongTensor`].
    pub fn tensor_of(
        &self,
        name: &str,
        dtype: HostDtype,
        shape: &[usize],
    ) -> Result<HostTensor, CheckpointError> {
        self.record_of(name, dtype, shape)?;
        self.tensor(name)
    }

    /// The elements of `region` of a tensor, which must be of type [`HostDtype::F32`] and of this
    /// `shape`, in the order of the region. Only the chunks that hold some of them are read, whatever
    /// regions the tensor was saved in.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::WrongTensor`], a region that is not in
    /// the tensor, or what is wrong with the files.
    pub fn region_f32(
        &self,
        name: &str,
        shape: &[usize],
        region: &Region,
    ) -> Result<Vec<f32>, CheckpointError> {
        let record = self.record_of(name, HostDtype::F32, shape)?;
        region.check(shape).map_err(|source| of_tensor(name, source))?;
        let mut values = vec![0.0; region.elements()];
        self.visit(name, record, region, |at, bytes| {
            let bytes = bytes.as_chunks::<4>().0;
            for (value, bytes) in values[at..].iter_mut().zip(bytes) {
                *value = f32::from_le_bytes(*bytes);
            }
        })?;
        Ok(values)
    }

    /// Verifies the checksums of every file now, in parallel, instead of at first use.
    ///
    /// # Errors
    /// [`CheckpointError`] of a file that is missing, torn or altered.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        self.files.par_iter().try_for_each(|(name, _)| self.file(name)?.verified().map(drop))
    }

    /// As [`verify`](Self::verify), of one of `size` equal shares of all chunks: `size` ranks verify all
    /// of the checkpoint, and each no more than its share.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_share(&self, rank: usize, size: usize) -> Result<(), CheckpointError> {
        let total: usize = self.index.files.values().map(|file| file.chunks.len()).sum();
        // In u128, for the products could be longer than a usize.
        let end = |rank: usize| (total as u128 * rank as u128 / size.max(1) as u128) as usize;
        let share = end(rank)..end(rank.saturating_add(1));
        let mut before = 0;
        for (name, record) in &self.index.files {
            let chunks = record.chunks.len();
            let place = |chunk: usize| chunk.clamp(before, before + chunks) - before;
            let own = place(share.start)..place(share.end);
            before += chunks;
            if !own.is_empty() {
                self.file(name)?.verify(own)?;
            }
        }
        Ok(())
    }

    fn entries(&self, group: TensorGroup) -> impl Iterator<Item = TensorEntry<'_>> {
        self.index
            .tensors
            .iter()
            .filter(move |(_, record)| record.group == group)
            .map(|(name, record)| TensorEntry { name, dtype: record.dtype, shape: &record.shape })
    }

    fn record(&self, name: &str) -> Result<&TensorRecord, CheckpointError> {
        self.index.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            name: name.into(),
            nearest: nearest(name, self.index.tensors.keys().map(String::as_str)),
        })
    }

    fn record_of(
        &self,
        name: &str,
        dtype: HostDtype,
        shape: &[usize],
    ) -> Result<&TensorRecord, CheckpointError> {
        let record = self.record(name)?;
        if record.dtype == dtype && record.shape == shape {
            return Ok(record);
        }
        Err(CheckpointError::WrongTensor {
            path: self.path.clone(),
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            found_dtype: record.dtype,
            found_shape: record.shape.clone(),
        })
    }

    /// Calls `visit` with the bytes of each run of the elements of `region`, and where in the region
    /// they begin, in elements.
    fn visit(
        &self,
        name: &str,
        record: &TensorRecord,
        region: &Region,
        mut visit: impl FnMut(usize, &[u8]),
    ) -> Result<(), CheckpointError> {
        let size = record.dtype.size() as u64;
        for piece in &record.pieces {
            let source = piece.region(&record.shape).map_err(|source| of_tensor(name, source))?;
            let mut place = None;
            source.try_for_each_run(region, |run| {
                // A file that holds nothing of the region is not touched.
                let (file, offset) = match place {
                    Some(place) => place,
                    None => *place.insert(self.place(name, record, piece)?),
                };
                let start = offset + run.source as u64 * size;
                visit(run.target, file.bytes(start..start + run.length as u64 * size)?);
                Ok::<(), CheckpointError>(())
            })?;
        }
        Ok(())
    }

    /// The file of a piece, and its first byte there.
    fn place(
        &self,
        name: &str,
        record: &TensorRecord,
        piece: &PieceRecord,
    ) -> Result<(&ChunkedFile, u64), CheckpointError> {
        let file = self.file(&piece.file)?;
        if let Some(offset) = piece.offset {
            return Ok((file, offset));
        }
        let entry = file.entry(name)?;
        match entry.filter(|entry| entry.dtype == record.dtype && entry.shape == record.shape) {
            Some(entry) => Ok((file, entry.range.start as u64)),
            None => Err(CheckpointError::Index {
                path: self.path.join(INDEX_FILE),
                reason: format!("tensor `{name}` differs from its entry in {}", piece.file),
            }),
        }
    }

    fn file(&self, name: &str) -> Result<&ChunkedFile, CheckpointError> {
        let path = self.path.join(name);
        let (Some(slot), Some(record)) = (self.files.get(name), self.index.files.get(name)) else {
            return Err(CheckpointError::MissingFile { path });
        };
        if let Some(file) = slot.get() {
            return Ok(file);
        }
        let file = ChunkedFile::open(&path, record, self.index.chunk_bytes)?;
        Ok(slot.get_or_init(|| file))
    }
}

fn of_tensor(name: &str, source: super::region::RegionError) -> CheckpointError {
    TensorError::Region { name: name.into(), source }.into()
}
