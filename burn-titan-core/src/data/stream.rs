//! One stream of samples from several sources.

use std::path::Path;
use std::sync::Arc;

use super::cursor::{Cursor, StreamIdentity};
use super::error::DataError;
use super::mix::Mixture;
use super::pack::{Sample, SourceStream};
use super::shuffle::Order;
use super::source::SourceFiles;
use super::tokenizer::Tokenizer;
use super::units::{DocumentEncoder, StoredUnits, TextUnits, Units};
use crate::config::schema::{DataConfig, SourceConfig};

/// What a stream of samples is made of.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// The sources.
    pub sources: Vec<SourceConfig>,
    /// Whether the stream is for training: sources are mixed by weight and repeated without end.
    /// Otherwise they are read once, one after another, and the stream ends.
    pub repeat: bool,
    /// Needed by sources of text.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Put before each document of text.
    pub bos: Option<u32>,
    /// Put after each document of text; ends a document of a token file.
    pub eos: Option<u32>,
    /// Tokens that the model has; any id must be below it.
    pub vocab_size: usize,
    /// Inputs of a sample, in tokens.
    pub seq_len: usize,
    /// Seed of shuffle and mixture.
    pub seed: u64,
    /// Documents (of token files: chunks of `seq_len + 1` tokens) that are shuffled among each
    /// other, or `None` for the order of the files.
    pub shuffle_buffer: Option<usize>,
    /// Whether documents are packed into full samples.
    pub pack: bool,
}

impl StreamOptions {
    /// The stream of `data.train`. Reads the tokenizer, if the config names one.
    ///
    /// # Errors
    /// A tokenizer that cannot be read or lacks `bos_token` or `eos_token`.
    pub fn training(
        data: &DataConfig,
        vocab_size: usize,
        seq_len: usize,
        seed: u64,
    ) -> Result<Self, DataError> {
        let tokenizer = data.tokenizer.as_ref().map(Tokenizer::from_file).transpose()?;
        let tokenizer = tokenizer.map(Arc::new);
        let special = |key, token: &Option<String>| match (token, &tokenizer) {
            (None, _) => Ok(None),
            (Some(text), Some(tokenizer)) => Ok(Some(tokenizer.token_id(text)?)),
            (Some(text), None) => {
                Err(DataError::SpecialTokenNeedsTokenizer { key, text: text.clone() })
            }
        };
        Ok(Self {
            sources: data.train.clone(),
            repeat: true,
            bos: special("bos_token", &data.bos_token)?,
            eos: special("eos_token", &data.eos_token)?,
            tokenizer,
            vocab_size,
            seq_len,
            seed,
            shuffle_buffer: data.shuffle.then_some(data.shuffle_buffer),
            pack: data.pack,
        })
    }

    /// The stream of `data.validation`, which is read once and in order; otherwise as this one.
    pub fn validation(&self, data: &DataConfig) -> Self {
        Self {
            sources: data.validation.clone(),
            repeat: false,
            shuffle_buffer: None,
            ..self.clone()
        }
    }

    fn split(&self) -> &'static str {
        if self.repeat { "train" } else { "validation" }
    }

    fn check(&self) -> Result<(), DataError> {
        if self.sources.is_empty() {
            return Err(DataError::NoSources { split: self.split() });
        }
        for (name, size) in [
            ("training.seq_len", self.seq_len),
            ("data.shuffle_buffer", self.shuffle_buffer.unwrap_or(1)),
            ("vocab_size", self.vocab_size),
        ] {
            if size == 0 {
                return Err(DataError::Option { name, cause: "expected at least 1".into() });
            }
        }
        if self.seq_len >= u32::MAX as usize {
            let cause = format!("expected less than {}", u32::MAX);
            return Err(DataError::Option { name: "training.seq_len", cause });
        }
        Ok(())
    }

    fn identity(&self, files: &[Arc<SourceFiles>]) -> StreamIdentity {
        StreamIdentity {
            seed: self.seed,
            seq_len: self.seq_len,
            pack: self.pack,
            shuffle_buffer: self.shuffle_buffer,
            bos: self.bos,
            eos: self.eos,
            tokenizer: self.tokenizer.as_ref().map(|file| file.fingerprint().to_owned()),
            sources: files.iter().map(|source| source.fingerprint()).collect(),
        }
    }

    fn units(&self, index: usize, source: &Arc<SourceFiles>) -> Result<Units, DataError> {
        let order = Order { seed: self.seed, source: index as u64, block: self.shuffle_buffer };
        let source = source.clone();
        if source.is_tokens() {
            let window = self.seq_len + 1;
            let units = StoredUnits::open(source, order, window, self.pack, self.eos)?;
            return Ok(Units::Stored(units));
        }
        let Some(tokenizer) = self.tokenizer.clone() else {
            return Err(DataError::TokenizerNeeded { path: source.path.clone() });
        };
        check_vocabulary(tokenizer.path(), tokenizer.vocab_size(), self.vocab_size)?;
        let encoder = DocumentEncoder { tokenizer, bos: self.bos, eos: self.eos };
        Ok(Units::Text(TextUnits::new(source, encoder, order)))
    }
}

fn check_vocabulary(path: &Path, tokens: usize, vocabulary: usize) -> Result<(), DataError> {
    if tokens <= vocabulary {
        return Ok(());
    }
    Err(DataError::TokenizerTooLarge { path: path.to_path_buf(), tokens, vocabulary })
}

/// The samples of all sources, in the global order.
///
/// Training: sample `n` comes from the source that a hash of (seed, n) draws by weight; each source
/// packs its own tokens. Otherwise: all samples of the first source, then of the second, and so on.
pub struct SampleStream {
    sources: Vec<SourceStream>,
    /// `None` for a single pass.
    mixture: Option<Mixture>,
    samples: u64,
    identity: Arc<StreamIdentity>,
}

impl SampleStream {
    /// Opens the sources, at `cursor` if one is given. Text is first read with the first sample.
    ///
    /// # Errors
    /// Sources that cannot be opened or used (see [`DataError`]), and a cursor of another stream.
    pub fn open(options: &StreamOptions, cursor: Option<&Cursor>) -> Result<Self, DataError> {
        options.check()?;
        let weights: Vec<f64> = options.sources.iter().map(|source| source.weight).collect();
        let mixture = options.repeat.then(|| Mixture::new(options.seed, &weights)).transpose()?;
        let files = options.sources.iter().map(|source| Ok(Arc::new(SourceFiles::find(source)?)));
        let files = files.collect::<Result<Vec<_>, DataError>>()?;
        let identity = Arc::new(options.identity(&files));
        if let Some(cursor) = cursor {
            cursor.identity.check(&identity)?;
            cursor.check_places()?;
        }
        let open = |(index, source): (usize, &Arc<SourceFiles>)| {
            let at = cursor.and_then(|cursor| cursor.sources.get(index));
            Ok(SourceStream::new(
                source.clone(),
                options.units(index, source)?,
                options.seq_len + 1,
                options.pack,
                options.repeat,
                options.vocab_size,
                at.copied().unwrap_or_default(),
            ))
        };
        let sources = files.iter().enumerate().map(open).collect::<Result<_, DataError>>()?;
        Ok(Self { sources, mixture, samples: cursor.map_or(0, |cursor| cursor.samples), identity })
    }

    /// Where the stream stands: after the samples given and passed over so far.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            samples: self.samples,
            sources: self.sources.iter().map(SourceStream::cursor).collect(),
            identity: self.identity.clone(),
        }
    }

    /// The next sample, or `None` at the end of a single pass (training never ends).
    ///
    /// # Errors
    /// A file that cannot be read or holds something wrong, by its name and place.
    pub fn next_sample(&mut self) -> Result<Option<Sample>, DataError> {
        let mut sample = Sample::default();
        Ok(self.advance(Some(&mut sample))?.then_some(sample))
    }

    /// Passes over the next sample, which costs nothing for token files. `false` at the end.
    pub fn skip_sample(&mut self) -> Result<bool, DataError> {
        self.advance(None)
    }

    fn advance(&mut self, mut sample: Option<&mut Sample>) -> Result<bool, DataError> {
        let candidates = match &self.mixture {
            Some(mixture) => {
                let drawn = mixture.source(self.samples);
                self.sources.get_mut(drawn..=drawn).unwrap_or_default()
            }
            None => &mut self.sources[..],
        };
        for source in candidates {
            if source.advance(sample.as_deref_mut())? {
                self.samples += 1;
                return Ok(true);
            }
        }
        Ok(false)
    }
}
