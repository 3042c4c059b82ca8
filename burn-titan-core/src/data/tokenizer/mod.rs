//! Text to token ids and back.

mod byte_level;
mod decode;
mod train;

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

pub use decode::DecodeStream;
pub use train::{BEGIN_OF_TEXT, END_OF_TEXT, train};

use byte_level::ByteLevelEncoder;

use crate::quiet;

/// An error in a tokenizer, or in training one.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is named and explained by its variant's message")]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error(
        "{path}: cannot read the tokenizer: {source}: check that the path exists and may be read"
    )]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not a tokenizer.
    #[error(
        "{path}: not a usable tokenizer.json: {cause}: export it by the `tokenizers` library, or \
         make one by `burn-titan tokenizer train`"
    )]
    Invalid { path: PathBuf, cause: String },
    /// The library failed on a text.
    #[error("{path}: cannot {action}: {cause}: check that the tokenizer covers the text")]
    Failed { path: PathBuf, action: &'static str, cause: String },
    /// A token that the vocabulary does not have.
    #[error("{path}: no token {token:?} in the vocabulary: {hint}")]
    UnknownToken { path: PathBuf, token: String, hint: String },
    /// Training: not enough room for the bytes.
    #[error(
        "vocab_size {asked} is too small: 256 bytes and 2 special tokens need at least {least}"
    )]
    VocabularyTooSmall { asked: usize, least: usize },
    /// Training: not enough text.
    #[error(
        "vocab_size {asked} cannot be reached: the text has pairs for only {reached} tokens: give \
         more text, or ask for at most {reached}"
    )]
    VocabularyUnreachable { asked: usize, reached: usize },
    /// Training: nothing to read.
    #[error("no input file is given: name at least one JSONL or text file to train on")]
    NoInputs,
    /// Training: no text.
    #[error(
        "{path}: holds token ids, but a tokenizer is trained on text: name a JSONL or text file"
    )]
    NotText { path: PathBuf },
    /// Training: the result cannot be written.
    #[error(
        "{path}: cannot write the tokenizer: {source}: check that the folder exists and may be \
         written"
    )]
    Write { path: PathBuf, source: std::io::Error },
}

/// A tokenizer of the `tokenizers` library, read from its `tokenizer.json`.
///
/// Byte-level BPE without a normalizer (our own, and Llama 3's) is encoded by a faster path with
/// the same result. Truncation and padding that the file asks for are turned off, because they
/// would lose or add text.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    byte_level: Option<ByteLevelEncoder>,
    path: PathBuf,
    fingerprint: String,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that cannot be read, is not a tokenizer, or encodes at random (BPE dropout).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref().to_path_buf();
        let bytes = std::fs::read(&path)
            .map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
        Self::from_bytes(&bytes, path)
    }

    fn from_bytes(bytes: &[u8], path: PathBuf) -> Result<Self, TokenizerError> {
        let invalid = |cause| TokenizerError::Invalid { path: path.clone(), cause };
        // The library panics on some damaged files, such as one whose merges leave the vocabulary.
        let mut inner = quiet::catch(|| tokenizers::Tokenizer::from_bytes(bytes))
            .ok_or_else(|| invalid("its parts contradict each other".into()))?
            .map_err(|error| invalid(error.to_string()))?;
        if let tokenizers::ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some_and(|dropout| dropout > 0.0)
        {
            return Err(invalid("it drops merges at random (`dropout`), set that to null".into()));
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        inner.set_encode_special_tokens(true);
        let vocab = inner.get_vocab(true);
        let last = vocab.values().max().ok_or_else(|| invalid("its vocabulary is empty".into()))?;
        Ok(Self {
            vocab_size: *last as usize + 1,
            byte_level: ByteLevelEncoder::for_tokenizer(&inner),
            fingerprint: format!("{:016x}", xxh3_64(bytes)),
            inner,
            path,
        })
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hash of the file's bytes, 16 hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// One more than the largest token id, special tokens included: the rows a model's embedding
    /// needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids of a document's text. The text of a special token is encoded as the plain text it
    /// is, so that a document cannot end itself; no token is added in front or at the end.
    ///
    /// # Errors
    /// A text that the tokenizer fails on (byte-level tokenizers never do).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.guarded("encode", || match &self.byte_level {
            Some(encoder) => encoder.encode(&self.inner, text),
            None => Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec()),
        })
    }

    /// The ids of a prompt: as [`Tokenizer::encode`], but the text of a special token becomes that
    /// token.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(false);
        self.guarded("encode", || Ok(inner.encode_fast(text, false)?.get_ids().to_vec()))
    }

    /// The text of token ids, special tokens by their names. Bytes that are not UTF-8 become
    /// U+FFFD, ids that the vocabulary does not have are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.guarded("decode", || self.inner.decode(ids, false))
    }

    /// Decodes tokens as they come, one at a time.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// The id of a token by its text, for example `<|end_of_text|>`.
    ///
    /// # Errors
    /// A token that the vocabulary does not have; the message offers the nearest special token.
    pub fn token_id(&self, token: &str) -> Result<u32, TokenizerError> {
        self.inner.token_to_id(token).ok_or_else(|| TokenizerError::UnknownToken {
            path: self.path.clone(),
            token: token.to_owned(),
            hint: self.nearest_special(token),
        })
    }

    fn nearest_special(&self, token: &str) -> String {
        let added = self.inner.get_added_tokens_decoder();
        let mut names: Vec<_> = added.values().map(|added| added.content.as_str()).collect();
        names.sort_by(|a, b| {
            let near = |name: &str| strsim::jaro_winkler(name, token);
            near(b).total_cmp(&near(a)).then(a.cmp(b))
        });
        match names.first() {
            Some(name) => format!("did you mean {name:?}?"),
            None => "it has no special tokens".into(),
        }
    }

    /// Runs a function of the library; its errors and panics become typed errors.
    fn guarded<T>(
        &self,
        action: &'static str,
        run: impl FnOnce() -> tokenizers::Result<T>,
    ) -> Result<T, TokenizerError> {
        let cause = match quiet::catch(run) {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => error.to_string(),
            None => "the tokenizers library panicked".into(),
        };
        Err(TokenizerError::Failed { path: self.path.clone(), action, cause })
    }
}

#[cfg(test)]
mod tests;
