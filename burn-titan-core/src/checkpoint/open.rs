//! Reading a checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use serde::de::DeserializeOwned;

use super::durable::{FileDigest, FileError};
use super::error::{CheckpointError, nearest};
use super::index::{
    CONFIG_FILE, FileRecord, INDEX_FILE, Index, STATE_FILE, TensorGroup, TensorRecord, hexadecimal,
};
use super::tensor::{HostDtype, HostTensor};
use super::tensor_file::{TensorFile, TensorView};

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

/// An open checkpoint. Tensors are read by memory map; each file's checksum is verified before the
/// first of its bytes is used.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    index: Index,
    /// The tensor files by name; empty until they were verified.
    tensor_files: BTreeMap<String, OnceLock<TensorFile>>,
}

/// Opens the checkpoint in the folder `path` (`.../step-00000100`), and verifies its index and the
/// presence and size of every file.
///
/// # Errors
/// [`CheckpointError`] that names the file which is missing, torn or altered.
pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let index = read_complete_index(path)?;
    let is_tensor_file = |name: &&String| name.ends_with(".safetensors");
    let tensor_files = index.files.keys().filter(is_tensor_file);
    let tensor_files = tensor_files.map(|name| (name.clone(), OnceLock::new())).collect();
    Ok(Checkpoint { path: path.to_path_buf(), index, tensor_files })
}

/// The index of the folder `path`, if every file is there with the right size.
pub(super) fn read_complete_index(path: &Path) -> Result<Index, CheckpointError> {
    let index = Index::read(path)?;
    for (name, record) in &index.files {
        let file = path.join(name);
        let found = match std::fs::metadata(&file) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CheckpointError::MissingFile { path: file });
            }
            Err(error) => return Err(FileError::new(&file, "read the file's size", error).into()),
        };
        if found != record.bytes {
            return Err(CheckpointError::Torn { path: file, expected: record.bytes, found });
        }
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

    /// Text of the run's resolved config.
    ///
    /// # Errors
    /// [`CheckpointError`] where the file was altered or cannot be read.
    pub fn config_yaml(&self) -> Result<String, CheckpointError> {
        self.read_text(CONFIG_FILE)
    }

    /// What the caller stored to continue from.
    ///
    /// # Errors
    /// [`CheckpointError::State`] where it is not a `T`; others where the file was altered.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        serde_json::from_str(&self.read_text(STATE_FILE)?).map_err(|error| CheckpointError::State {
            path: self.path.join(STATE_FILE),
            reason: error.to_string(),
        })
    }

    /// Where a further file of this name is, if the checkpoint was saved with one. It was not read yet:
    /// see [`verify`](Self::verify) and [`further_file`](Self::further_file).
    pub fn further_file_path(&self, name: &str) -> Option<PathBuf> {
        self.index.files.contains_key(name).then(|| self.path.join(name))
    }

    /// The contents of a further file, if the checkpoint was saved with one of this name.
    ///
    /// # Errors
    /// [`CheckpointError`] where the file was altered or cannot be read.
    pub fn further_file(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.index.files.contains_key(name).then(|| self.verified(name)).transpose()
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
    /// [`CheckpointError::MissingTensor`], or what is wrong with its file.
    pub fn tensor(&self, name: &str) -> Result<HostTensor, CheckpointError> {
        Ok(self.view(name)?.to_tensor())
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
        let record = self.record(name)?;
        if record.dtype == dtype && record.shape == shape {
            return self.tensor(name);
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

    /// One tensor without a copy.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], or what is wrong with its file.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        let record = self.record(name)?;
        let view = self.tensor_file(&record.file)?.view(name)?;
        if view.dtype == record.dtype && view.shape == record.shape {
            return Ok(view);
        }
        let reason = format!("tensor `{name}` differs from its entry in {}", record.file);
        Err(CheckpointError::Index { path: self.path.join(INDEX_FILE), reason })
    }

    /// Verifies the checksum of every file now, in parallel, instead of at first use.
    ///
    /// # Errors
    /// [`CheckpointError`] of a file that is missing, torn or altered.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        let plain = self.index.files.keys().filter(|name| !self.tensor_files.contains_key(*name));
        for name in plain {
            self.verified(name)?;
        }
        self.tensor_files.par_iter().try_for_each(|(name, _)| self.tensor_file(name).map(|_| ()))
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

    fn file_record(&self, name: &str) -> Result<&FileRecord, CheckpointError> {
        let missing = || CheckpointError::MissingFile { path: self.path.join(name) };
        self.index.files.get(name).ok_or_else(missing)
    }

    fn tensor_file(&self, name: &str) -> Result<&TensorFile, CheckpointError> {
        let path = self.path.join(name);
        let Some(slot) = self.tensor_files.get(name) else {
            return Err(CheckpointError::MissingFile { path });
        };
        if let Some(file) = slot.get() {
            return Ok(file);
        }
        let file = match TensorFile::open(&path) {
            Ok(file) => file,
            // A header that cannot be read was most likely altered, which is the better message.
            Err(error) => {
                let contents = read(&path)?;
                self.verify_contents(name, &contents)?;
                return Err(error.into());
            }
        };
        self.verify_contents(name, file.bytes())?;
        Ok(slot.get_or_init(|| file))
    }

    fn read_text(&self, name: &str) -> Result<String, CheckpointError> {
        String::from_utf8(self.verified(name)?).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
            FileError::new(&self.path.join(name), "read the file", source).into()
        })
    }

    fn verified(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let contents = read(&self.path.join(name))?;
        self.verify_contents(name, &contents)?;
        Ok(contents)
    }

    fn verify_contents(&self, name: &str, contents: &[u8]) -> Result<(), CheckpointError> {
        let (path, record) = (self.path.join(name), self.file_record(name)?);
        let digest = FileDigest::of(contents);
        if digest.bytes != record.bytes {
            let (expected, found) = (record.bytes, digest.bytes);
            return Err(CheckpointError::Torn { path, expected, found });
        }
        let found = hexadecimal(digest.xxh3);
        if found != record.xxh3 {
            let expected = record.xxh3.clone();
            return Err(CheckpointError::Altered { path, expected, found });
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CheckpointError::MissingFile { path: path.to_path_buf() },
        _ => FileError::new(path, "read the file", error).into(),
    })
}
