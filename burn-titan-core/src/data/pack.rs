//! Samples of `seq_len + 1` tokens from the units of a source, and rows of a batch from samples.

use std::sync::Arc;

use super::cursor::SourceCursor;
use super::documents::DocumentRef;
use super::error::DataError;
use super::source::SourceFiles;
use super::units::{Unit, Units};

/// A target that does not count in the loss.
pub const IGNORE: u32 = u32::MAX;

/// The token that fills the rest of a row. No loss is taken on it and no document attends to it.
pub const PAD: u32 = 0;

/// Up to `seq_len + 1` consecutive tokens of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// The tokens; fewer than `seq_len + 1` if documents are not packed, or at the end of a single
    /// pass.
    pub tokens: Vec<u32>,
    /// Where in `tokens` a document, or what is left of one, begins. The first is always 0.
    pub starts: Vec<usize>,
    /// Those documents.
    pub documents: Vec<DocumentRef>,
}

impl Sample {
    fn begin(&mut self, at: usize, document: DocumentRef) {
        self.starts.push(at);
        self.documents.push(document);
    }

    /// Appends tokens of a unit.
    fn append(
        &mut self,
        unit: &Unit,
        first: usize,
        length: usize,
        vocabulary: usize,
    ) -> Result<(), DataError> {
        let begin = self.tokens.len();
        unit.read(first, length, vocabulary, &mut self.tokens)?;
        if begin == 0 || !unit.continues() {
            self.begin(begin, unit.reference(first));
        }
        let Some(eos) = unit.eos() else { return Ok(()) };
        for index in begin.max(1)..self.tokens.len() {
            if self.tokens[index - 1] == eos && self.starts.last() != Some(&index) {
                self.begin(index, unit.reference(first + index - begin));
            }
        }
        Ok(())
    }
}

/// The samples of one source.
///
/// Packed: the units' tokens are concatenated, over all passes, and sample `k` is the tokens
/// `k * window..(k + 1) * window` of that stream (as in torchtitan). Otherwise each unit is cut
/// into pieces of at most `window` tokens, each a sample.
pub(crate) struct SourceStream {
    source: Arc<SourceFiles>,
    units: Units,
    /// `seq_len + 1`.
    window: usize,
    pack: bool,
    /// Whether passes follow one another without end.
    repeat: bool,
    vocabulary: usize,
    cursor: SourceCursor,
    unit: Option<Unit>,
    /// Whether this pass was read from its start, and whether it gave a token.
    pass: Pass,
}

#[derive(PartialEq)]
enum Pass {
    /// Nothing was read yet.
    Unopened,
    /// Read from the start, without a token so far.
    Empty,
    /// With tokens, or entered in the middle.
    Fruitful,
}

impl SourceStream {
    /// A stream that begins at `cursor`; files are read at the first sample.
    pub(crate) fn new(
        source: Arc<SourceFiles>,
        units: Units,
        window: usize,
        pack: bool,
        repeat: bool,
        vocabulary: usize,
        cursor: SourceCursor,
    ) -> Self {
        let (unit, pass) = (None, Pass::Unopened);
        Self { source, units, window, pack, repeat, vocabulary, cursor, unit, pass }
    }

    /// Where the stream stands.
    pub(crate) fn cursor(&self) -> SourceCursor {
        self.cursor
    }

    /// Moves past the next sample and writes it to `sample`, if one is given. `false` at the end of
    /// a single pass.
    pub(crate) fn advance(&mut self, mut sample: Option<&mut Sample>) -> Result<bool, DataError> {
        let mut filled = 0;
        while filled < self.window && self.find_unit()? {
            let Some(unit) = &self.unit else { break };
            let first = self.cursor.token as usize;
            let length = (unit.len() - first).min(self.window - filled);
            if let Some(sample) = sample.as_deref_mut() {
                sample.append(unit, first, length, self.vocabulary)?;
            }
            filled += length;
            self.cursor.token += length as u64;
            if first + length == unit.len() {
                self.finish_unit();
            }
            if !self.pack {
                break;
            }
        }
        Ok(filled > 0)
    }

    fn finish_unit(&mut self) {
        self.unit = None;
        self.cursor.document += 1;
        self.cursor.token = 0;
    }

    /// Makes sure that there is a unit with tokens left. `false` at the end of a single pass.
    fn find_unit(&mut self) -> Result<bool, DataError> {
        while self.unit.is_none() {
            if !self.repeat && self.cursor.epoch > 0 {
                return Ok(false);
            }
            if self.pass == Pass::Unopened {
                self.open_pass()?;
            }
            let Some(unit) = self.units.next()? else {
                if self.pass == Pass::Empty {
                    return Err(DataError::NoTokens { path: self.source.path.clone() });
                }
                let epoch = self.cursor.epoch + 1;
                self.cursor = SourceCursor { epoch, ..Default::default() };
                self.pass = Pass::Unopened;
                continue;
            };
            if self.cursor.token > 0 && self.cursor.token >= unit.len() as u64 {
                let SourceCursor { token, document, .. } = self.cursor;
                let what =
                    format!("token {token} of document {document}, which has {}", unit.len());
                return Err(DataError::CursorBeyond { path: self.source.path.clone(), what });
            }
            self.unit = Some(unit);
            if self.unit.as_ref().is_some_and(|unit| unit.len() == 0) {
                self.finish_unit();
            } else {
                self.pass = Pass::Fruitful;
            }
        }
        Ok(true)
    }

    fn open_pass(&mut self) -> Result<(), DataError> {
        self.units.seek(self.cursor.epoch, self.cursor.document)?;
        let from_start = self.cursor.document == 0;
        self.pass = if from_start { Pass::Empty } else { Pass::Fruitful };
        Ok(())
    }
}

/// Rows of a batch, each `seq` long, row after row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) document_ids: Vec<u32>,
}

impl Rows {
    /// Empty, with room for `batch` rows.
    pub(crate) fn with_capacity(batch: usize, seq: usize) -> Self {
        let room = || Vec::with_capacity(batch * seq);
        Self { tokens: room(), targets: room(), positions: room(), document_ids: room() }
    }

    /// Appends a sample as a row of `seq` tokens and gives the number of its targets that count.
    /// The padding is a document of its own, so that no position is without one.
    pub(crate) fn push(&mut self, sample: &Sample, seq: usize) -> usize {
        let mut valid = 0;
        let length = sample.tokens.len();
        let ends = sample.starts.iter().skip(1).copied().chain([length]);
        for (document, (&start, end)) in sample.starts.iter().zip(ends).enumerate() {
            let end_input = end.min(seq);
            let inputs = sample.tokens.get(start..end_input).unwrap_or_default();
            let targets = sample.tokens.get(start + 1..end).unwrap_or_default();
            self.tokens.extend_from_slice(inputs);
            self.targets.extend_from_slice(targets);
            self.targets.extend((targets.len()..inputs.len()).map(|_| IGNORE));
            self.positions.extend(0..inputs.len() as u32);
            self.document_ids.extend(inputs.iter().map(|_| document as u32));
            valid += targets.len();
        }
        let padding = seq.saturating_sub(length);
        let document = sample.starts.len() as u32;
        self.tokens.extend((0..padding).map(|_| PAD));
        self.targets.extend((0..padding).map(|_| IGNORE));
        self.positions.extend(0..padding as u32);
        self.document_ids.extend((0..padding).map(|_| document));
        valid
    }
}
