//! Documents of JSONL and text files as they are stored, not parsed and not tokenized yet.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::error::DataError;
use super::jsonl::{LineReader, text_of_line};
use super::source::{FileKind, SourceFiles};

/// Names a document, so that a message can say where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRef {
    /// The file that holds it.
    pub file: Arc<Path>,
    /// Where in the file it is.
    pub place: Place,
}

/// Where in a file a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is the whole file.
    File,
    /// On this line, counted from 1.
    Line(u64),
    /// From this token on, counted from 0 over the whole file.
    Token(u64),
}

impl fmt::Display for DocumentRef {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        match self.place {
            Place::File => Ok(()),
            Place::Line(line) => write!(formatter, ": line {line}"),
            Place::Token(token) => write!(formatter, ": token {token}"),
        }
    }
}

/// A document as stored: a line of JSONL, or the whole of a text file.
pub(crate) struct RawDocument {
    pub(crate) reference: DocumentRef,
    pub(crate) bytes: Vec<u8>,
}

impl RawDocument {
    /// The document's text.
    pub(crate) fn text(self, key: &str) -> Result<String, DataError> {
        match self.reference.place {
            Place::Line(line) => text_of_line(&self.bytes, key, &self.reference.file, line),
            _ => String::from_utf8(self.bytes).map_err(|error| DataError::TextNotUtf8 {
                path: self.reference.file.to_path_buf(),
                byte: error.utf8_error().valid_up_to(),
            }),
        }
    }
}

/// Reads the documents of a source once, in file order.
pub(crate) struct RawDocuments {
    source: Arc<SourceFiles>,
    /// The file that is read or comes next.
    file: usize,
    lines: Option<LineReader>,
}

impl RawDocuments {
    pub(crate) fn new(source: Arc<SourceFiles>) -> Self {
        Self { source, file: 0, lines: None }
    }

    /// The next document, or `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<RawDocument>, DataError> {
        let mut bytes = Vec::new();
        let reference = self.advance(&mut bytes, true)?;
        Ok(reference.map(|reference| RawDocument { reference, bytes }))
    }

    /// Passes over `count` documents without parsing them and gives how many there were.
    pub(crate) fn skip(&mut self, count: u64) -> Result<u64, DataError> {
        let mut bytes = Vec::new();
        for skipped in 0..count {
            if self.advance(&mut bytes, false)?.is_none() {
                return Ok(skipped);
            }
        }
        Ok(count)
    }

    /// Moves past one document. A text file is only opened if it is `wanted`.
    fn advance(
        &mut self,
        bytes: &mut Vec<u8>,
        wanted: bool,
    ) -> Result<Option<DocumentRef>, DataError> {
        while let Some(file) = self.source.files.get(self.file) {
            let name = file.path.clone();
            if file.kind == FileKind::Text {
                self.file += 1;
                if wanted {
                    let read = file.open()?.read_to_end(bytes);
                    read.map_err(|source| file.read_error(0, source))?;
                }
                return Ok(Some(DocumentRef { file: name, place: Place::File }));
            }
            let lines = match &mut self.lines {
                Some(lines) => lines,
                None => self.lines.insert(LineReader::open(file.clone())?),
            };
            if let Some(line) = lines.next(bytes)? {
                return Ok(Some(DocumentRef { file: name, place: Place::Line(line) }));
            }
            self.lines = None;
            self.file += 1;
        }
        Ok(None)
    }
}
