//! `index.json`: the commit record of a checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::durable::{FileDigest, FileError, write_file};
use super::error::CheckpointError;
use super::tensor::HostDtype;

/// The format written and read here.
pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const INDEX_FILE: &str = "index.json";
pub(super) const STATE_FILE: &str = "state.json";
pub(super) const CONFIG_FILE: &str = "config.yaml";

/// Stands in the text for the index's own checksum while that is computed.
const NO_CHECKSUM: &str = "0000000000000000";

/// Which part of the training state a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorGroup {
    /// Parameters and buffers of the model.
    Model,
    /// State of the optimizer.
    Optimizer,
}

impl TensorGroup {
    /// Beginning of the names of this group's files.
    pub(super) fn file_stem(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Optimizer => "optimizer",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRecord {
    pub(super) bytes: u64,
    /// 16 hexadecimal digits.
    pub(super) xxh3: String,
}

impl From<FileDigest> for FileRecord {
    fn from(digest: FileDigest) -> Self {
        Self { bytes: digest.bytes, xxh3: hexadecimal(digest.xxh3) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorRecord {
    pub(super) group: TensorGroup,
    pub(super) file: String,
    pub(super) dtype: HostDtype,
    pub(super) shape: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub(super) format_version: u32,
    /// XXH3 of this very file, with this field's 16 digits as zeros.
    checksum: String,
    pub(super) step: u64,
    pub(super) files: BTreeMap<String, FileRecord>,
    pub(super) tensors: BTreeMap<String, TensorRecord>,
}

impl Index {
    pub(super) fn new(
        step: u64,
        files: BTreeMap<String, FileRecord>,
        tensors: BTreeMap<String, TensorRecord>,
    ) -> Self {
        let checksum = NO_CHECKSUM.to_string();
        Self { format_version: FORMAT_VERSION, checksum, step, files, tensors }
    }

    /// Writes `index.json` into `folder`, durably.
    pub(super) fn write(mut self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(INDEX_FILE);
        self.checksum = NO_CHECKSUM.into();
        let text = |index: &Self| {
            serde_json::to_string_pretty(index)
                .map_err(|error| unreadable(&path, error.to_string()))
        };
        self.checksum = hexadecimal(FileDigest::of(text(&self)?.as_bytes()).xxh3);
        write_file(&path, text(&self)?.as_bytes())?;
        Ok(())
    }

    /// Reads and verifies the `index.json` of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(INDEX_FILE);
        let text = read_text(&path)?;
        // The version comes first: what else a later version holds is not known here.
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| unreadable(&path, format!("not valid JSON: {error}")))?;
        match value.get("format_version") {
            Some(version) if version.as_u64() == Some(FORMAT_VERSION.into()) => {}
            Some(version) => {
                let found = version.to_string();
                return Err(CheckpointError::Version { path, found, supported: FORMAT_VERSION });
            }
            None => return Err(unreadable(&path, "the key `format_version` is missing".into())),
        }
        let index: Self = serde_json::from_str(&text)
            .map_err(|error| unreadable(&path, format!("not a checkpoint index: {error}")))?;
        index.verify_own_checksum(&path, &text)?;
        index.check_references(&path)?;
        Ok(index)
    }

    fn verify_own_checksum(&self, path: &Path, text: &str) -> Result<(), CheckpointError> {
        let blank = text.replacen(&self.checksum, NO_CHECKSUM, 1);
        let found = hexadecimal(FileDigest::of(blank.as_bytes()).xxh3);
        if found == self.checksum {
            return Ok(());
        }
        let (path, expected) = (path.to_path_buf(), self.checksum.clone());
        Err(CheckpointError::Altered { path, expected, found })
    }

    /// Names must stay inside the folder, and a tensor's file must be one of the files.
    fn check_references(&self, path: &Path) -> Result<(), CheckpointError> {
        for name in self.files.keys() {
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(unreadable(path, format!("`{name}` is not the name of a file")));
            }
        }
        for required in [STATE_FILE, CONFIG_FILE] {
            if !self.files.contains_key(required) {
                return Err(unreadable(path, format!("it does not list `{required}`")));
            }
        }
        for (name, record) in &self.tensors {
            if !self.files.contains_key(&record.file) {
                let file = &record.file;
                return Err(unreadable(path, format!("tensor `{name}` is in no file (`{file}`)")));
            }
        }
        Ok(())
    }
}

fn read_text(path: &Path) -> Result<String, CheckpointError> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CheckpointError::NoIndex { path: path.to_path_buf() },
        io::ErrorKind::InvalidData => unreadable(path, "not valid UTF-8".into()),
        _ => FileError::new(path, "read the file", error).into(),
    })
}

fn unreadable(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Index { path: PathBuf::from(path), reason }
}

pub(super) fn hexadecimal(value: u64) -> String {
    format!("{value:016x}")
}
