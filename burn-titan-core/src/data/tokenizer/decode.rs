//! Decoding a stream of tokens, as a model generates them.

use super::{Tokenizer, TokenizerError};

/// Tokens that are kept as context, because some decoders treat the first token of a text in their
/// own way (they drop its leading space).
const CONTEXT: usize = 4;
/// Tokens that are kept before the context is cut again.
const KEPT: usize = 32;

/// Decodes tokens one at a time and never gives half a character: bytes of a character that is not
/// complete yet are held back until it is, or until they cannot become one.
#[derive(Debug)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// How much of the text of `ids` has been given, in bytes.
    given: usize,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// Takes the next token and gives the text that is certain now (often empty inside a
    /// character).
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // The decoder ends an unfinished character by one U+FFFD, so only the last can still
        // change.
        let certain = text.strip_suffix('\u{fffd}').unwrap_or(&text).len();
        let new = text.get(self.given..certain).unwrap_or_default().to_owned();
        self.given = self.given.max(certain);
        if self.ids.len() > KEPT && certain == text.len() {
            self.ids.drain(..self.ids.len() - CONTEXT);
            self.given = self.tokenizer.decode(&self.ids)?.len();
        }
        Ok(new)
    }

    /// Ends the stream and gives what was held back, as U+FFFD.
    pub fn finish(self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(self.given..).unwrap_or_default().to_owned())
    }
}
