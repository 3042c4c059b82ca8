//! One safetensors file: written durably in one pass, read by memory map.
//!
//! The format is that of <https://github.com/huggingface/safetensors#format>: eight bytes of header
//! length, a JSON header, the tensors' bytes without gaps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::{Map, Value, json};

use super::durable::{DEFAULT_CHUNK_BYTES, DurableWriter, FileError};
use super::error::{did_you_mean, nearest};
use super::tensor::{HostDtype, HostTensor};

/// What can be wrong with a safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no such file.
    #[error("{}: no such file: check the path, or fetch the file again", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The header cannot be understood, or contradicts the file.
    #[error(
        "{}: not a readable safetensors file: {reason}: fetch or save the file again",
        path.display()
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file ends too early.
    #[error(
        "{}: the file is torn: {found} bytes, but its header alone needs {expected}: fetch or save \
         the file again",
        path.display()
    )]
    TornHeader {
        /// The file.
        path: PathBuf,
        /// Bytes up to the end of the header.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// An element type that has no use here.
    #[error(
        "{}: tensor `{tensor}` has the element type {dtype}, which is not supported: convert it to \
         F32, F16 or BF16",
        path.display()
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: String,
    },
    /// The file has no such tensor.
    #[error("{}: no tensor `{name}`{}", path.display(), did_you_mean(nearest))]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The tensor with the most similar name.
        nearest: Option<String>,
    },
}

impl TensorFileError {
    /// [`MissingTensor`](Self::MissingTensor) with the most similar of `names`.
    pub(crate) fn missing<'a>(
        path: &Path,
        name: &str,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let nearest = nearest(name, names);
        Self::MissingTensor { path: path.to_path_buf(), name: name.into(), nearest }
    }
}

/// Writes `tensors` to a new file at `path`, with `metadata` in its header, and syncs it. Within the
/// file, wider element types come first, so that every tensor is aligned to its element.
///
/// # Errors
/// [`FileError`] where the file cannot be created or written. Names must differ; this is the
/// caller's to check.
pub fn write_tensor_file<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = &'a HostTensor>,
    metadata: &[(&str, &str)],
) -> Result<(), FileError> {
    let mut tensors: Vec<&HostTensor> = tensors.into_iter().collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype().size()));
    let entries = tensors.iter().map(|t| (t.name(), t.dtype(), t.shape(), t.data().len()));
    let mut writer = begin(path, &header(entries, metadata), DEFAULT_CHUNK_BYTES)?;
    for tensor in tensors {
        writer.write(tensor.data())?;
    }
    writer.finish().map(drop)
}

/// Creates a file and writes its header.
pub(super) fn begin(
    path: &Path,
    header: &str,
    chunk_bytes: u64,
) -> Result<DurableWriter, FileError> {
    let mut writer = DurableWriter::create(path, chunk_bytes)?;
    writer.write(&(header.len() as u64).to_le_bytes())?;
    writer.write(header.as_bytes())?;
    Ok(writer)
}

/// The JSON header of tensors, each with its name, type, shape and bytes.
pub(super) fn header<'a>(
    tensors: impl Iterator<Item = (&'a str, HostDtype, &'a [usize], usize)>,
    metadata: &[(&str, &str)],
) -> String {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let metadata: Map<String, Value> =
            metadata.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
        header.insert("__metadata__".into(), Value::Object(metadata));
    }
    let mut start = 0;
    for (name, dtype, shape, bytes) in tensors {
        let end = start + bytes;
        let entry = json!({
            "dtype": dtype.name(),
            "shape": shape,
            "data_offsets": [start, end],
        });
        header.insert(name.to_string(), entry);
        start = end;
    }
    let mut text = Value::Object(header).to_string();
    // Spaces up to a multiple of eight align the data.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    text
}

/// One tensor of a file, without a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Name of the tensor.
    pub name: &'a str,
    /// Element type.
    pub dtype: HostDtype,
    /// Length of each dim.
    pub shape: &'a [usize],
    /// Little-endian bytes, row-major.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// A copy that outlives the file.
    pub fn to_tensor(&self) -> HostTensor {
        HostTensor::from_view(self)
    }
}

/// What the header says of a tensor.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dtype: HostDtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

/// A safetensors file, read by memory map.
///
/// The file must not be changed while it is open: a map shows changes, and a file that is truncated
/// under a map ends the process.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Opens a file and checks its header against its size.
    ///
    /// # Errors
    /// [`TensorFileError`] for a missing or torn file, a bad header, or an element type that is not
    /// supported.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let map = map_file(path)?;
        let entries = read_header(path, &map)?;
        Ok(Self { path: path.to_path_buf(), map, entries })
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// One tensor, without a copy.
    ///
    /// # Errors
    /// [`TensorFileError::MissingTensor`].
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, TensorFileError> {
        match self.entries.get_key_value(name) {
            Some((name, entry)) => Ok(TensorView {
                name,
                dtype: entry.dtype,
                shape: &entry.shape,
                data: &self.map[entry.range.clone()],
            }),
            None => Err(TensorFileError::missing(&self.path, name, self.names())),
        }
    }
}

/// Maps a whole file.
pub(super) fn map_file(path: &Path) -> Result<Mmap, TensorFileError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => TensorFileError::Missing { path: path.to_path_buf() },
        _ => FileError::new(path, "open the file", error).into(),
    })?;
    // SAFETY: a map is undefined behaviour only if the file changes under it. Nobody writes to a
    // checkpoint or to downloaded weights in place (this crate renames complete folders), and the
    // type's documentation forbids it.
    let map = unsafe { Mmap::map(&file) };
    Ok(map.map_err(|error| FileError::new(path, "map the file", error))?)
}

/// The tensors of a file with these contents.
pub(super) fn read_header(
    path: &Path,
    bytes: &[u8],
) -> Result<BTreeMap<String, Entry>, TensorFileError> {
    let torn = |expected| TensorFileError::TornHeader {
        path: path.to_path_buf(),
        expected,
        found: bytes.len() as u64,
    };
    let bad = |reason: String| TensorFileError::Header { path: path.to_path_buf(), reason };
    let Some((length, _)) = bytes.split_first_chunk::<8>() else { return Err(torn(8)) };
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| match error {
        SafeTensorError::InvalidHeaderLength => torn(u64::from_le_bytes(*length).saturating_add(8)),
        SafeTensorError::MetadataIncompleteBuffer => {
            bad("its tensors need more or fewer bytes than follow the header".into())
        }
        SafeTensorError::HeaderTooLarge => bad("its header is longer than 100 MB".into()),
        error => bad(error.to_string()),
    })?;
    let mut entries = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let Some(dtype) = HostDtype::from_safetensors(info.dtype) else {
            let (path, dtype) = (path.to_path_buf(), format!("{:?}", info.dtype));
            return Err(TensorFileError::Dtype { path, tensor: name, dtype });
        };
        let (start, end) = info.data_offsets;
        let range = 8 + header + start..8 + header + end;
        entries.insert(name, Entry { dtype, shape: info.shape.clone(), range });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<HostTensor> {
        vec![
            HostTensor::from_bytes("flags", HostDtype::Bool, &[3], vec![1, 0, 1]).unwrap(),
            HostTensor::from_f32("w", &[2, 2], &[1.0, 2.0, 3.0, f32::NAN]).unwrap(),
            HostTensor::from_bytes("ids", HostDtype::I64, &[1], vec![7, 0, 0, 0, 0, 0, 0, 0])
                .unwrap(),
            HostTensor::from_f32("empty", &[0, 4], &[]).unwrap(),
        ]
    }

    #[test]
    fn what_is_written_is_read_and_the_crate_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write_tensor_file(&path, &tensors(), &[("format", "pt")]).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["empty", "flags", "ids", "w"]);
        for tensor in tensors() {
            let view = file.view(tensor.name()).unwrap();
            assert_eq!(view.to_tensor(), tensor);
            let offset = view.data.as_ptr() as usize - file.bytes().as_ptr() as usize;
            assert_eq!(offset % tensor.dtype().size(), 0, "{} is aligned", tensor.name());
        }
        let (_, metadata) = SafeTensors::read_metadata(file.bytes()).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let error = file.view("ws").unwrap_err().to_string();
        assert_eq!(error, format!("{}: no tensor `ws` (did you mean `w`?)", path.display()));
    }

    #[test]
    fn broken_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let shown = path.display();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{shown}: no such file: check the path, or fetch the file again")
        );
        write_tensor_file(&path, &tensors(), &[]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = TensorFile::open(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{shown}: ")), "{error}");
            assert!(error.ends_with("fetch or save the file again"), "{error}");
        }
        let json = br#"{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#;
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json);
        file.push(0);
        std::fs::write(&path, &file).unwrap();
        assert_eq!(
            TensorFile::open(&path).unwrap_err().to_string(),
            format!(
                "{shown}: tensor `x` has the element type F8_E4M3, which is not supported: \
                 convert it to F32, F16 or BF16"
            )
        );
        file[0] = 0xff;
        file[7] = 0xff;
        std::fs::write(&path, &file).unwrap();
        assert!(matches!(TensorFile::open(&path), Err(TensorFileError::Header { .. })));
    }
}
