//! The entries of `index.json`.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::durable::FileDigest;
use super::region::{Region, RegionError};
use super::tensor::HostDtype;
use super::tiling::{TilingError, check_tiling};

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

/// A 64-bit XXH3, written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Checksum(pub(super) u64);

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = u64::from_str_radix(&text, 16).ok().map(Self);
        value.filter(|checksum| checksum.to_string() == text).ok_or_else(|| {
            let wanted = "16 hexadecimal digits in lower case";
            serde::de::Error::invalid_value(serde::de::Unexpected::Str(&text), &wanted)
        })
    }
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRecord {
    pub(super) bytes: u64,
    /// Of each chunk of the file; an empty file has one chunk.
    pub(super) chunks: Vec<Checksum>,
}

impl From<FileDigest> for FileRecord {
    fn from(digest: FileDigest) -> Self {
        let chunks = digest.chunks.into_iter().map(Checksum).collect();
        Self { bytes: digest.bytes, chunks }
    }
}

/// A tensor of a checkpoint. Its pieces are all of it, each element once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorRecord {
    pub(super) group: TensorGroup,
    pub(super) dtype: HostDtype,
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<PieceRecord>,
}

/// A piece of a tensor: a region of it, whose elements are contiguous in a file. What is left out is
/// whole: the box, and the range of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PieceRecord {
    pub(super) file: String,
    /// Its first byte; `None` for that which the header of the file says.
    pub(super) offset: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<Vec<usize>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    length: Option<Vec<usize>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<Range<usize>>,
}

impl PieceRecord {
    /// All of a tensor.
    pub(super) fn whole(file: String, offset: Option<u64>) -> Self {
        Self { file, offset, start: None, length: None, range: None }
    }

    /// A region of a tensor of `shape`.
    pub(super) fn new(file: String, offset: u64, shape: &[usize], region: &Region) -> Self {
        let mut record = Self::whole(file, Some(offset));
        if !region.is_box_whole(shape) {
            record.start = Some(region.start().to_vec());
            record.length = Some(region.length().to_vec());
        }
        if !region.is_whole_box() {
            record.range = Some(region.range());
        }
        record
    }

    /// Its region of a tensor of `shape`.
    pub(super) fn region(&self, shape: &[usize]) -> Result<Region, RegionError> {
        let origin = vec![0; shape.len()];
        let start = self.start.as_deref().unwrap_or(&origin);
        let length = self.length.as_deref().unwrap_or(shape);
        match &self.range {
            Some(range) => Region::new(start, length, range.clone()),
            None => Region::of_box(start, length),
        }
    }
}

impl TensorRecord {
    /// Checks that the pieces are all of the tensor, each element once, and that each lies in its file;
    /// `bytes_of` gives the size of a file. Gives what is wrong.
    pub(super) fn check(&self, bytes_of: impl Fn(&str) -> Option<u64>) -> Result<(), String> {
        let Self { dtype, shape, pieces, .. } = self;
        if dtype.bytes_of(shape).is_none() {
            return Err(format!("the shape {shape:?} of {dtype} overflows"));
        }
        let regions = pieces.iter().map(|piece| piece.region(shape));
        let regions = regions.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        for (piece, region) in pieces.iter().zip(&regions) {
            let file = &piece.file;
            let Some(bytes) = bytes_of(file) else {
                return Err(format!("it is in no file (`{file}`)"));
            };
            let size = (region.elements() as u64).saturating_mul(dtype.size() as u64);
            if piece.offset.is_some_and(|offset| offset.saturating_add(size) > bytes) {
                return Err(format!("it does not end within the file `{file}`"));
            }
        }
        check_tiling(shape, &regions).map_err(|error| match error {
            TilingError::Outside(error) => error.to_string(),
            TilingError::Overlap(a, b) => {
                let (a, b) = (&pieces[a].file, &pieces[b].file);
                format!("its pieces in `{a}` and `{b}` overlap")
            }
            TilingError::Hole { found, expected } => {
                format!("its pieces have {found} of {expected} elements")
            }
        })
    }
}
