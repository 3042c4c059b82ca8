//! Which files a source has, in which order, and how each is opened.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::{FileFingerprint, SourceFingerprint};
use super::error::DataError;
use crate::config::schema::{SourceConfig, SourceFormat, TokenDtype};

const READ_BUFFER: usize = 128 * 1024;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// One JSON object a line.
    Jsonl,
    /// One document of plain text.
    Text,
    /// Token ids.
    Tokens(TokenFormat),
}

/// How token ids are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFormat {
    /// Little-endian integers of the given width and nothing else.
    Bin(TokenDtype),
    /// NumPy's array format.
    Npy,
}

impl FileKind {
    /// Whether the file holds token ids.
    pub fn is_tokens(self) -> bool {
        matches!(self, FileKind::Tokens(_))
    }
}

/// How a file is compressed, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz` (RFC 1952), one or many members.
    Gzip,
    /// `.zst` (RFC 8878), one or many frames.
    Zstd,
}

impl Compression {
    /// The name of the format in messages.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "plain",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// One file of a source.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// Where it is.
    pub path: Arc<Path>,
    /// What it holds.
    pub kind: FileKind,
    /// How it is compressed.
    pub compression: Compression,
    /// Its size on disk, in bytes.
    pub bytes: u64,
}

impl DataFile {
    /// Opens the file as a stream of its decompressed bytes.
    pub fn open(&self) -> Result<Box<dyn BufRead + Send>, DataError> {
        let failed = |source| DataError::Read { path: self.path.to_path_buf(), source };
        let file = BufReader::with_capacity(READ_BUFFER, File::open(&self.path).map_err(failed)?);
        Ok(match self.compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(BufReader::with_capacity(
                READ_BUFFER,
                flate2::bufread::MultiGzDecoder::new(file),
            )),
            Compression::Zstd => Box::new(BufReader::with_capacity(
                READ_BUFFER,
                zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?,
            )),
        })
    }

    /// The error for a read that failed after `line` whole lines.
    pub(crate) fn read_error(&self, line: u64, source: std::io::Error) -> DataError {
        let path = self.path.to_path_buf();
        match self.compression {
            Compression::None => DataError::Read { path, source },
            other => DataError::Torn { path, format: other.name(), line, source },
        }
    }
}

/// The files of one source, in reading order. All hold text, or all hold tokens.
#[derive(Debug, Clone)]
pub struct SourceFiles {
    /// The path as configured: a file or a folder.
    pub path: PathBuf,
    /// Its files; never empty.
    pub files: Vec<DataFile>,
    /// Key of a JSONL line that holds the text.
    pub text_key: String,
}

impl SourceFiles {
    /// Finds the files of a source. A folder gives its files in the order of their names; hidden
    /// ones (whose name starts with a dot) are left out.
    ///
    /// # Errors
    /// A path that cannot be read, an empty folder, a folder in the folder, a name whose ending
    /// says nothing (with `format: auto`), and a folder that mixes text and tokens.
    pub fn find(config: &SourceConfig) -> Result<Self, DataError> {
        let path = config.path.clone();
        let metadata =
            fs::metadata(&path).map_err(|source| DataError::Read { path: path.clone(), source })?;
        let paths = if metadata.is_dir() { list_folder(&path)? } else { vec![path.clone()] };
        let files =
            paths.into_iter().map(|file| describe(file, config)).collect::<Result<Vec<_>, _>>()?;
        let tokens = files.first().is_some_and(|file| file.kind.is_tokens());
        if let Some(other) = files.iter().find(|file| file.kind.is_tokens() != tokens) {
            return Err(DataError::MixedFolder { path, file: file_name(&other.path) });
        }
        Ok(Self { path, files, text_key: config.text_key.clone() })
    }

    /// Whether the source holds token ids rather than text.
    pub fn is_tokens(&self) -> bool {
        self.files.iter().any(|file| file.kind.is_tokens())
    }

    /// Names and sizes of the files, to notice changed data at a resume.
    pub fn fingerprint(&self) -> SourceFingerprint {
        let files = self.files.iter();
        SourceFingerprint {
            path: self.path.display().to_string(),
            files: files
                .map(|file| FileFingerprint { name: file_name(&file.path), bytes: file.bytes })
                .collect(),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn list_folder(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Read { path: folder.to_path_buf(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !file_name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(DataError::EmptyFolder { path: folder.to_path_buf() });
    }
    paths.sort();
    Ok(paths)
}

fn describe(path: PathBuf, config: &SourceConfig) -> Result<DataFile, DataError> {
    let metadata =
        fs::metadata(&path).map_err(|source| DataError::Read { path: path.clone(), source })?;
    if !metadata.is_file() {
        return Err(DataError::NotAFile { path });
    }
    let (kind, compression) = classify(&path, config)?;
    Ok(DataFile { path: path.into(), kind, compression, bytes: metadata.len() })
}

fn classify(path: &Path, config: &SourceConfig) -> Result<(FileKind, Compression), DataError> {
    let name = file_name(path).to_lowercase();
    let (name, compression) = if let Some(name) = name.strip_suffix(".gz") {
        (name, Compression::Gzip)
    } else if let Some(name) = name.strip_suffix(".zst") {
        (name, Compression::Zstd)
    } else {
        (name.as_str(), Compression::None)
    };
    let format = match config.format {
        SourceFormat::Auto => SourceFormat::of_path(Path::new(name)),
        given => Some(given),
    };
    let kind = match format {
        Some(SourceFormat::Jsonl) => FileKind::Jsonl,
        Some(SourceFormat::Text) => FileKind::Text,
        Some(SourceFormat::Tokens) if name.ends_with(".npy") => FileKind::Tokens(TokenFormat::Npy),
        Some(SourceFormat::Tokens) => FileKind::Tokens(TokenFormat::Bin(config.token_dtype)),
        Some(SourceFormat::Auto) | None => {
            return Err(DataError::UnknownFormat { path: path.into() });
        }
    };
    if kind.is_tokens() && compression != Compression::None {
        return Err(DataError::CompressedTokens { path: path.into() });
    }
    Ok((kind, compression))
}
