//! Memory-mapped files of token ids: `.bin` (as Megatron and nanoGPT write) and `.npy`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::error::DataError;
use super::npy::parse_header;
use super::source::TokenFormat;
use crate::config::schema::TokenDtype;

/// Type of a stored token id, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    U16,
    U32,
    I32,
    I64,
}

impl Element {
    fn width(self) -> usize {
        match self {
            Element::U16 => 2,
            Element::U32 | Element::I32 => 4,
            Element::I64 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> i64 {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        let value = i64::from_le_bytes(padded);
        // The truncation keeps the four bytes that were stored.
        if self == Element::I32 { i64::from(value as i32) } else { value }
    }
}

/// One file of token ids: `rows` rows of `row_length` tokens (one row, unless it is a 2-D array).
pub(crate) struct TokenFile {
    path: Arc<Path>,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
    data_start: usize,
    element: Element,
    rows: usize,
    row_length: usize,
}

impl TokenFile {
    /// Maps the file and checks that its size is what its header or width asks for.
    ///
    /// # Errors
    /// A file that cannot be mapped, a `.bin` of no whole number of tokens, and a `.npy` whose
    /// header, element type, order, shape or size does not fit.
    pub(crate) fn open(path: Arc<Path>, format: TokenFormat) -> Result<Self, DataError> {
        let failed = |source| DataError::Read { path: path.to_path_buf(), source };
        let handle = File::open(&path).map_err(failed)?;
        let map = if handle.metadata().map_err(failed)?.len() == 0 {
            None
        } else {
            // SAFETY: the map is only read, and every bit pattern is a valid byte. A file that
            // another process truncates while it is mapped faults, as for every user of a map; data
            // files are not written while a run reads them.
            Some(unsafe { Mmap::map(&handle) }.map_err(failed)?)
        };
        match format {
            TokenFormat::Npy => Self::npy(path, map),
            TokenFormat::Bin(TokenDtype::U16) => Self::bin(path, map, Element::U16),
            TokenFormat::Bin(TokenDtype::U32) => Self::bin(path, map, Element::U32),
        }
    }

    fn bin(path: Arc<Path>, map: Option<Mmap>, element: Element) -> Result<Self, DataError> {
        let (bytes, width) = (map.as_ref().map_or(0, |map| map.len()), element.width());
        if bytes % width != 0 {
            let path = path.to_path_buf();
            let (bytes, width) = (bytes as u64, width as u64);
            return Err(DataError::TokenFileSize { path, bytes, width });
        }
        Ok(Self { path, map, data_start: 0, element, rows: 1, row_length: bytes / width })
    }

    fn npy(path: Arc<Path>, map: Option<Mmap>) -> Result<Self, DataError> {
        let (element, rows, row_length, data_start) =
            npy_layout(map.as_deref().unwrap_or_default())
                .map_err(|cause| DataError::Npy { path: path.to_path_buf(), cause })?;
        Ok(Self { path, map, data_start, element, rows, row_length })
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Rows, each a document of its own.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens in a row.
    pub(crate) fn row_length(&self) -> usize {
        self.row_length
    }

    /// The stored values `start..start + length`, counted over the whole file and cut at its end.
    fn values(&self, start: usize, length: usize) -> impl Iterator<Item = i64> + '_ {
        let width = self.element.width();
        let bytes = self.map.as_deref().and_then(|map| map.get(self.data_start..));
        let bytes = bytes.and_then(|bytes| bytes.get(start * width..)).unwrap_or_default();
        let bytes = bytes.get(..length * width).unwrap_or(bytes);
        bytes.chunks_exact(width).map(|bytes| self.element.decode(bytes))
    }

    /// Appends the tokens `start..start + length` to `out`.
    ///
    /// # Errors
    /// A token outside of the vocabulary, by its offset.
    pub(crate) fn read(
        &self,
        start: usize,
        length: usize,
        vocabulary: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        for (index, id) in self.values(start, length).enumerate() {
            match u32::try_from(id) {
                Ok(token) if (token as usize) < vocabulary => out.push(token),
                _ => {
                    let (path, offset) = (self.path.to_path_buf(), (start + index) as u64);
                    return Err(DataError::OutOfVocabulary { path, offset, id, vocabulary });
                }
            }
        }
        Ok(())
    }

    /// Where documents end: after each `eos` and at the end of each row, as offsets in the file.
    /// Reads the whole file once.
    pub(crate) fn document_ends(&self, eos: u32) -> Vec<usize> {
        let mut ends = Vec::new();
        for row in 0..self.rows {
            let start = row * self.row_length;
            for (index, id) in self.values(start, self.row_length).enumerate() {
                if id == i64::from(eos) || index + 1 == self.row_length {
                    ends.push(start + index + 1);
                }
            }
        }
        ends
    }
}

/// Element type, rows, row length and start of the data of a `.npy` file; an error is the cause.
fn npy_layout(bytes: &[u8]) -> Result<(Element, usize, usize, usize), String> {
    let header = parse_header(bytes)?;
    let element = match header.descr.as_str() {
        "<u2" => Element::U16,
        "<u4" => Element::U32,
        "<i4" => Element::I32,
        "<i8" => Element::I64,
        other => return Err(format!("the element type {other:?} is not supported")),
    };
    if header.fortran_order {
        return Err("the array is in Fortran order".into());
    }
    let (rows, row_length) = match header.shape[..] {
        [length] => (1, length),
        [rows, length] => (rows, length),
        _ => return Err(format!("the array has {} dimensions", header.shape.len())),
    };
    let expected = rows.checked_mul(row_length).and_then(|n| n.checked_mul(element.width() as u64));
    let held = (bytes.len() - header.data_start) as u64;
    if expected != Some(held) {
        let shape = &header.shape;
        let cause = match expected {
            Some(expected) if expected < held => format!("{} more bytes follow", held - expected),
            _ => format!("the file is cut off: it holds {held} bytes"),
        };
        return Err(format!("the header promises an array of shape {shape:?}, but {cause}"));
    }
    // An array without elements has no rows that are worth walking over.
    let rows = if row_length == 0 { 0 } else { rows };
    let size = |n: u64| usize::try_from(n).map_err(|_| format!("{n} elements are too many"));
    Ok((element, size(rows)?, size(row_length)?, header.data_start))
}
