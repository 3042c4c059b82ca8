//! The units of one source, in seeded order: documents of text, tokenized ahead in parallel, or
//! chunks of a token file.

use std::collections::VecDeque;
use std::sync::Arc;

use rayon::prelude::*;

use super::documents::{DocumentRef, Place, RawDocument, RawDocuments};
use super::error::DataError;
use super::shuffle::Order;
use super::source::{FileKind, SourceFiles};
use super::tokenizer::Tokenizer;
use super::tokens::TokenFile;

/// Text that is tokenized at a time, in bytes as stored: enough for a few cores, and little memory.
const AHEAD_BYTES: usize = 256 * 1024;

/// What is read from a source at once; it may be empty.
pub(crate) enum Unit {
    /// A whole document.
    Text {
        /// Where it is.
        reference: DocumentRef,
        /// Its tokens with bos and eos, or none if its text has none.
        tokens: Vec<u32>,
    },
    /// A part of a token file.
    Stored {
        file: Arc<TokenFile>,
        /// First token, as an offset in the file.
        start: usize,
        length: usize,
        /// Whether it goes on where the unit before it ended, in the same document.
        continues: bool,
        /// A token after which a new document begins.
        eos: Option<u32>,
    },
}

impl Unit {
    /// Tokens in the unit.
    pub(crate) fn len(&self) -> usize {
        match self {
            Unit::Text { tokens, .. } => tokens.len(),
            Unit::Stored { length, .. } => *length,
        }
    }

    /// Whether the unit goes on with the document of the unit before it.
    pub(crate) fn continues(&self) -> bool {
        matches!(self, Unit::Stored { continues: true, .. })
    }

    /// A token after which another document begins inside the unit.
    pub(crate) fn eos(&self) -> Option<u32> {
        match self {
            Unit::Text { .. } => None,
            Unit::Stored { eos, .. } => *eos,
        }
    }

    /// Names the document that token `index` of the unit belongs to.
    pub(crate) fn reference(&self, index: usize) -> DocumentRef {
        match self {
            Unit::Text { reference, .. } => reference.clone(),
            Unit::Stored { file, start, .. } => DocumentRef {
                file: file.path().clone(),
                place: Place::Token((start + index) as u64),
            },
        }
    }

    /// Appends the tokens `start..start + length` of the unit to `out`.
    pub(crate) fn read(
        &self,
        first: usize,
        length: usize,
        vocabulary: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        match self {
            Unit::Text { tokens, .. } => {
                out.extend_from_slice(tokens.get(first..first + length).unwrap_or_default());
                Ok(())
            }
            Unit::Stored { file, start, .. } => file.read(start + first, length, vocabulary, out),
        }
    }
}

/// The units of a source.
pub(crate) enum Units {
    /// Of text.
    Text(TextUnits),
    /// Of token files.
    Stored(StoredUnits),
}

impl Units {
    /// Makes `document` of pass `epoch` the next unit.
    ///
    /// # Errors
    /// A pass that has fewer units.
    pub(crate) fn seek(&mut self, epoch: u64, document: u64) -> Result<(), DataError> {
        match self {
            Units::Text(units) => units.seek(epoch, document),
            Units::Stored(units) => units.seek(epoch, document),
        }
    }

    /// The next unit, or `None` at the end of the pass.
    pub(crate) fn next(&mut self) -> Result<Option<Unit>, DataError> {
        match self {
            Units::Text(units) => units.next(),
            Units::Stored(units) => Ok(units.next()),
        }
    }
}

/// Turns stored documents into tokens.
pub(crate) struct DocumentEncoder {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
}

impl DocumentEncoder {
    fn encode(&self, document: RawDocument, key: &str) -> Result<Unit, DataError> {
        let reference = document.reference.clone();
        let mut tokens = self.tokenizer.encode(&document.text(key)?)?;
        if !tokens.is_empty() {
            tokens.splice(..0, self.bos);
            tokens.extend(self.eos);
        }
        Ok(Unit::Text { reference, tokens })
    }
}

/// The documents of a text source.
pub(crate) struct TextUnits {
    source: Arc<SourceFiles>,
    encoder: DocumentEncoder,
    order: Order,
    epoch: u64,
    /// Index of the block that is read next.
    block: u64,
    raw: RawDocuments,
    /// Documents of the current block that are not tokenized yet, in order.
    waiting: VecDeque<RawDocument>,
    ready: VecDeque<Unit>,
}

impl TextUnits {
    pub(crate) fn new(source: Arc<SourceFiles>, encoder: DocumentEncoder, order: Order) -> Self {
        let raw = RawDocuments::new(source.clone());
        let (waiting, ready) = Default::default();
        Self { source, encoder, order, epoch: 0, block: 0, raw, waiting, ready }
    }

    fn seek(&mut self, epoch: u64, document: u64) -> Result<(), DataError> {
        self.raw = RawDocuments::new(self.source.clone());
        self.ready.clear();
        self.waiting.clear();
        self.epoch = epoch;
        let (block, before, inside) = match self.order.block {
            Some(size) => {
                let block = document / size as u64;
                (block, block * size as u64, document % size as u64)
            }
            None => (0, document, 0),
        };
        self.block = block;
        let mut reached = self.raw.skip(before)?;
        if inside > 0 && reached == before {
            self.load()?;
            let passed = self.waiting.len().min(inside as usize);
            self.waiting.drain(..passed);
            reached += passed as u64;
        }
        if reached < document {
            let (path, what) = (self.source.path.clone(), format!("document {document}"));
            let what = format!("{what}, but a pass has only {reached}");
            return Err(DataError::CursorBeyond { path, what });
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Unit>, DataError> {
        while self.ready.is_empty() {
            if self.waiting.is_empty() {
                self.load()?;
            }
            if self.waiting.is_empty() {
                return Ok(None);
            }
            self.encode_ahead()?;
        }
        Ok(self.ready.pop_front())
    }

    /// Reads the next block and puts it in order; without a shuffle, as much as is tokenized at a
    /// time.
    fn load(&mut self) -> Result<(), DataError> {
        let mut block = Vec::new();
        let mut bytes = 0;
        while self.order.block.map_or(bytes < AHEAD_BYTES, |size| block.len() < size)
            && let Some(document) = self.raw.next()?
        {
            bytes += document.bytes.len();
            block.push(Some(document));
        }
        if self.order.block.is_some() {
            let order = self.order.permutation(self.epoch, self.block, block.len());
            self.waiting = order.into_iter().filter_map(|index| block[index].take()).collect();
            self.block += 1;
        } else {
            self.waiting = block.into_iter().flatten().collect();
        }
        Ok(())
    }

    fn encode_ahead(&mut self) -> Result<(), DataError> {
        let mut documents = Vec::new();
        let mut bytes = 0;
        while bytes < AHEAD_BYTES
            && let Some(document) = self.waiting.pop_front()
        {
            bytes += document.bytes.len();
            documents.push(document);
        }
        let encode = |document| self.encoder.encode(document, &self.source.text_key);
        let units: Vec<_> = documents.into_par_iter().map(encode).collect();
        // The first error in the order of the data, whichever thread met one first.
        self.ready = units.into_iter().collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// Where the units of one token file begin and end.
struct StoredFile {
    file: Arc<TokenFile>,
    /// Units of this file and of all before it.
    units_to_end: u64,
    layout: Layout,
}

enum Layout {
    /// Each row is cut into chunks of this many tokens, the last of a row shorter.
    Chunks { length: usize, in_row: usize },
    /// Documents end at these offsets.
    Documents { ends: Vec<usize> },
}

/// The chunks, or documents, of a source of token files.
pub(crate) struct StoredUnits {
    source: Arc<SourceFiles>,
    files: Vec<StoredFile>,
    eos: Option<u32>,
    order: Order,
    epoch: u64,
    document: u64,
    /// The current block's index and order.
    permutation: Option<(u64, Vec<usize>)>,
}

impl StoredUnits {
    /// Maps the files. A unit is a chunk of `chunk` tokens of a row, which a sample takes whole;
    /// but if documents are not packed and end by `eos`, a unit is a document.
    pub(crate) fn open(
        source: Arc<SourceFiles>,
        order: Order,
        chunk: usize,
        pack: bool,
        eos: Option<u32>,
    ) -> Result<Self, DataError> {
        let mut files = Vec::new();
        let mut units_to_end = 0;
        for file in &source.files {
            let FileKind::Tokens(format) = file.kind else { continue };
            let file = Arc::new(TokenFile::open(file.path.clone(), format)?);
            let (layout, units) = match eos {
                Some(eos) if !pack => {
                    let ends = file.document_ends(eos);
                    let units = ends.len();
                    (Layout::Documents { ends }, units)
                }
                _ => {
                    let in_row = file.row_length().div_ceil(chunk);
                    (Layout::Chunks { length: chunk, in_row }, in_row * file.rows())
                }
            };
            units_to_end += units as u64;
            files.push(StoredFile { file, units_to_end, layout });
        }
        let eos = eos.filter(|_| pack);
        Ok(Self { source, files, eos, order, epoch: 0, document: 0, permutation: None })
    }

    fn units(&self) -> u64 {
        self.files.last().map_or(0, |file| file.units_to_end)
    }

    fn seek(&mut self, epoch: u64, document: u64) -> Result<(), DataError> {
        let units = self.units();
        if document > units {
            let path = self.source.path.clone();
            let what = format!("document {document}, but a pass has only {units}");
            return Err(DataError::CursorBeyond { path, what });
        }
        (self.epoch, self.document, self.permutation) = (epoch, document, None);
        Ok(())
    }

    fn next(&mut self) -> Option<Unit> {
        if self.document >= self.units() {
            return None;
        }
        let index = self.in_file_order(self.document);
        self.document += 1;
        let before = self.files.partition_point(|file| file.units_to_end <= index);
        let first = before.checked_sub(1).map_or(0, |before| self.files[before].units_to_end);
        let stored = &self.files[before];
        let index = (index - first) as usize;
        let (start, length, continues) = match &stored.layout {
            Layout::Chunks { length, in_row } => {
                let (row, chunk) = (index / in_row, index % in_row);
                let row_length = stored.file.row_length();
                let length_here = (*length).min(row_length - chunk * length);
                let continues = chunk > 0 && self.order.block.is_none();
                (row * row_length + chunk * length, length_here, continues)
            }
            Layout::Documents { ends } => {
                let start = index.checked_sub(1).map_or(0, |before| ends[before]);
                (start, ends[index] - start, false)
            }
        };
        Some(Unit::Stored { file: stored.file.clone(), start, length, continues, eos: self.eos })
    }

    /// Which unit of the files comes at place `document` of the pass.
    fn in_file_order(&mut self, document: u64) -> u64 {
        let Some(size) = self.order.block.map(|size| size as u64) else { return document };
        let block = document / size;
        let order = match self.permutation.take() {
            Some((current, order)) if current == block => order,
            _ => {
                let length = size.min(self.units() - block * size);
                self.order.permutation(self.epoch, block, length as usize)
            }
        };
        let index = block * size + order[(document % size) as usize] as u64;
        self.permutation = Some((block, order));
        index
    }
}
