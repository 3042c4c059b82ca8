//! `index.json`: the commit record of a checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::durable::{FileError, checksum, write_file};
use super::error::CheckpointError;
use super::record::{Checksum, FileRecord, PieceRecord, TensorGroup, TensorRecord};
use super::tensor::HostDtype;

/// The format written here.
const FORMAT_VERSION: u32 = 2;
/// The oldest format read here.
const OLDEST_VERSION: u32 = 1;
pub(super) const INDEX_FILE: &str = "index.json";
pub(super) const STATE_FILE: &str = "state.json";
pub(super) const CONFIG_FILE: &str = "config.yaml";

/// Stands in the text for the index's own checksum while that is computed.
const NO_CHECKSUM: Checksum = Checksum(0);

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    format_version: u32,
    /// XXH3 of this very file, with this field's 16 digits as zeros.
    checksum: Checksum,
    pub(super) step: u64,
    /// Whether it holds no more than the model, and no run can continue from it.
    pub(super) model_only: bool,
    /// Bytes of a file that have a checksum of their own; the last chunk of a file may be shorter.
    pub(super) chunk_bytes: u64,
    pub(super) files: BTreeMap<String, FileRecord>,
    pub(super) tensors: BTreeMap<String, TensorRecord>,
}

/// The index of format version 1: one checksum a file, each tensor whole.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexVersion1 {
    #[serde(rename = "format_version")]
    _format_version: u32,
    checksum: Checksum,
    step: u64,
    files: BTreeMap<String, FileVersion1>,
    tensors: BTreeMap<String, TensorVersion1>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileVersion1 {
    bytes: u64,
    xxh3: Checksum,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorVersion1 {
    group: TensorGroup,
    file: String,
    dtype: HostDtype,
    shape: Vec<usize>,
}

impl From<IndexVersion1> for Index {
    fn from(old: IndexVersion1) -> Self {
        let file = |(name, file): (String, FileVersion1)| {
            (name, FileRecord { bytes: file.bytes, chunks: vec![file.xxh3] })
        };
        let tensor = |(name, tensor): (String, TensorVersion1)| {
            let TensorVersion1 { group, file, dtype, shape } = tensor;
            let pieces = vec![PieceRecord::whole(file, None)];
            (name, TensorRecord { group, dtype, shape, pieces })
        };
        Self {
            format_version: FORMAT_VERSION,
            checksum: old.checksum,
            step: old.step,
            model_only: false,
            // A file is one chunk, however long it is.
            chunk_bytes: u64::MAX,
            files: old.files.into_iter().map(file).collect(),
            tensors: old.tensors.into_iter().map(tensor).collect(),
        }
    }
}

impl Index {
    pub(super) fn new(
        step: u64,
        model_only: bool,
        chunk_bytes: u64,
        files: BTreeMap<String, FileRecord>,
        tensors: BTreeMap<String, TensorRecord>,
    ) -> Self {
        let (format_version, checksum) = (FORMAT_VERSION, NO_CHECKSUM);
        Self { format_version, checksum, step, model_only, chunk_bytes, files, tensors }
    }

    /// Writes `index.json` into `folder`, durably.
    pub(super) fn write(mut self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(INDEX_FILE);
        let text =
            |index: &Self| index.to_text().map_err(|error| unreadable(&path, error.to_string()));
        self.checksum = NO_CHECKSUM;
        self.checksum = Checksum(checksum(text(&self)?.as_bytes()));
        Ok(write_file(&path, text(&self)?.as_bytes())?)
    }

    /// JSON with a line for each file and each tensor, to look through with line tools.
    fn to_text(&self) -> serde_json::Result<String> {
        let Self { format_version, checksum, step, model_only, chunk_bytes, files, tensors } = self;
        let (files, tensors) = (lines(files)?, lines(tensors)?);
        Ok(format!(
            "{{\n\"format_version\": {format_version},\n\"checksum\": \"{checksum}\",\n\
             \"step\": {step},\n\"model_only\": {model_only},\n\"chunk_bytes\": {chunk_bytes},\n\
             \"files\": {files},\n\"tensors\": {tensors}\n}}\n"
        ))
    }

    /// Reads and verifies the `index.json` of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(INDEX_FILE);
        let text = read_text(&path)?;
        let index: Self = match version(&path, &text)? {
            OLDEST_VERSION => parse::<IndexVersion1>(&path, &text)?.into(),
            _ => parse(&path, &text)?,
        };
        index.verify_own_checksum(&path, &text)?;
        index.check().map_err(|reason| unreadable(&path, reason))?;
        Ok(index)
    }

    fn verify_own_checksum(&self, path: &Path, text: &str) -> Result<(), CheckpointError> {
        let blank = text.replacen(&self.checksum.to_string(), &NO_CHECKSUM.to_string(), 1);
        let found = Checksum(checksum(blank.as_bytes()));
        if found == self.checksum {
            return Ok(());
        }
        Err(CheckpointError::Altered {
            path: path.to_path_buf(),
            range: None,
            expected: self.checksum.to_string(),
            found: found.to_string(),
        })
    }

    /// Checks that names stay inside the folder, that each file has its checksums, and that each tensor
    /// is whole. Gives what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.chunk_bytes == 0 {
            return Err("its `chunk_bytes` are 0".into());
        }
        for (name, file) in &self.files {
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(format!("`{name}` is not the name of a file"));
            }
            let chunks = file.bytes.div_ceil(self.chunk_bytes).max(1);
            if file.chunks.len() as u64 != chunks {
                let found = file.chunks.len();
                return Err(format!("`{name}` has {found} checksums, but {chunks} chunks"));
            }
        }
        for required in [STATE_FILE, CONFIG_FILE] {
            if !self.files.contains_key(required) {
                return Err(format!("it does not list `{required}`"));
            }
        }
        for (name, record) in &self.tensors {
            let bytes_of = |file: &str| self.files.get(file).map(|file| file.bytes);
            record.check(bytes_of).map_err(|reason| format!("tensor `{name}`: {reason}"))?;
        }
        Ok(())
    }
}

/// A JSON object with a line for each entry.
fn lines<T: Serialize>(entries: &BTreeMap<String, T>) -> serde_json::Result<String> {
    let line = |(name, entry): (&String, &T)| {
        Ok(format!("{}: {}", serde_json::to_string(name)?, serde_json::to_string(entry)?))
    };
    let lines: Vec<String> = entries.iter().map(line).collect::<serde_json::Result<_>>()?;
    Ok(format!("{{\n{}\n}}", lines.join(",\n")))
}

/// The format version, which comes first: what else a later version holds is not known here.
fn version(path: &Path, text: &str) -> Result<u32, CheckpointError> {
    /// All that every version has.
    #[derive(Deserialize)]
    struct Head {
        format_version: Option<Value>,
    }
    let head: Head = serde_json::from_str(text)
        .map_err(|error| unreadable(path, format!("not valid JSON: {error}")))?;
    let Some(version) = head.format_version else {
        return Err(unreadable(path, "the key `format_version` is missing".into()));
    };
    let number = version.as_u64().and_then(|version| u32::try_from(version).ok());
    number.filter(|version| (OLDEST_VERSION..=FORMAT_VERSION).contains(version)).ok_or_else(|| {
        let (path, found) = (path.to_path_buf(), version.to_string());
        CheckpointError::Version { path, found, supported: FORMAT_VERSION }
    })
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, CheckpointError> {
    serde_json::from_str(text)
        .map_err(|error| unreadable(path, format!("not a checkpoint index: {error}")))
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
