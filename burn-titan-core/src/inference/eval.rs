//! The loss of a model on a file.

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use rayon::prelude::*;
use serde::Serialize;

use super::{DEFAULT_SEQ_LEN, LoadedModel, chosen_tokenizer};
use crate::checkpoint::{HostDtype, HostTensor};
use crate::config::{DataConfig, SourceConfig, SourceFormat, TokenDtype};
use crate::data::{Batch, DataError, IGNORE, Loader, LoaderOptions, StreamOptions};
use crate::model::{HeadOutput, Stream};
use crate::trainer::{TrainError, loss_of};

/// What `eval` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalResult {
    /// Mean cross-entropy, in nats a token.
    pub loss: f64,
    /// `e^loss`.
    pub perplexity: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

/// What a model is measured on.
pub enum EvalData<'a> {
    /// A file or folder of documents, packed as in training.
    File {
        /// The file.
        path: &'a Path,
        /// How it is read, where that differs from the run's own data.
        reading: Reading,
        /// The tokenizer; `None` for the one of the model.
        tokenizer: Option<&'a Path>,
    },
    /// A JSON file: a list of lists of token ids, one sequence each; the loss is over all next tokens.
    TokenIds(&'a Path),
}

/// How a file is read. Where nothing is said, the width of tokens and the key of the text are those of
/// the run's first source of validation, or else of training.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// The format; `None` for what the ending of the name says.
    pub format: Option<SourceFormat>,
    /// Key of a JSONL line that holds the text.
    pub text_key: Option<String>,
    /// Width of the integers in a `.bin` file.
    pub token_dtype: Option<TokenDtype>,
}

impl Reading {
    /// The source of `path`, for a model that was trained on `data`.
    fn source(&self, path: &Path, data: &DataConfig) -> SourceConfig {
        let mut source = SourceConfig::of_path(PathBuf::from(path));
        if let Some(run) = data.validation.first().or_else(|| data.train.first()) {
            source.text_key.clone_from(&run.text_key);
            source.token_dtype = run.token_dtype;
        }
        source.format = self.format.unwrap_or(source.format);
        source.token_dtype = self.token_dtype.unwrap_or(source.token_dtype);
        if let Some(key) = &self.text_key {
            source.text_key.clone_from(key);
        }
        source
    }
}

/// Measures a model. Logits, if asked for, are one f32 tensor a sequence, `logits.0` on, `[seq,
/// vocab]`; or one tensor `logits`, `[sequences, seq, vocab]`, where all sequences are equally long. The
/// loss is then taken from the logits, in f64: it may differ in the last digits of an f32. Of a file's
/// sequences, those that are padding alone are left out.
///
/// # Errors
/// Data that cannot be read, or that has no token to predict.
pub fn evaluate(
    model: &LoadedModel,
    data: &EvalData,
    want_logits: bool,
) -> Result<(EvalResult, Vec<HostTensor>), TrainError> {
    let mut sum = Sum { model, loss: 0.0, tokens: 0, logits: want_logits.then(Logits::default) };
    match data {
        EvalData::TokenIds(path) => {
            for sequence in read_token_ids(path, model.executor.model().vocab_size)? {
                sum.add(&whole_sequence(&sequence), |_| true)?;
            }
        }
        EvalData::File { path, reading, tokenizer } => {
            let options = loader_options(model, path, reading, *tokenizer)?;
            let mut loader = Loader::spawn(options).map_err(by_options)?;
            while let Some(batch) = loader.next()? {
                sum.add(&batch, |targets| targets.iter().any(|target| *target != IGNORE))?;
            }
        }
    }
    if sum.tokens == 0 {
        let (EvalData::TokenIds(path) | EvalData::File { path, .. }) = data;
        return Err(TrainError::File {
            path: path.display().to_string(),
            cause: "there is no token to predict: give sequences of at least 2 tokens".into(),
        });
    }
    let loss = sum.loss / sum.tokens as f64;
    let result = EvalResult { loss, perplexity: loss.exp(), tokens: sum.tokens };
    let logits = sum.logits.map_or(Ok(vec![]), |logits| logits.tensors(model))?;
    Ok((result, logits))
}

struct Sum<'a> {
    model: &'a LoadedModel,
    loss: f64,
    tokens: usize,
    logits: Option<Logits>,
}

impl Sum<'_> {
    /// Adds a batch; the logits of a row are kept where `keeps` says so of the row's targets.
    fn add(&mut self, batch: &Batch, keeps: impl Fn(&[u32]) -> bool) -> Result<(), TrainError> {
        self.tokens += batch.valid_tokens;
        let executor = &self.model.executor;
        let Some(kept) = &mut self.logits else {
            let context = executor.context(batch, HeadOutput::Loss);
            self.loss += loss_of(executor.forward(&context)?);
            return Ok(());
        };
        let context = executor.context(batch, HeadOutput::Logits);
        let values = logits_of(executor.forward(&context)?, 0..batch.seq);
        let vocab = executor.model().vocab_size;
        self.loss += cross_entropy(&values, vocab, &batch.targets);
        let rows = values.chunks_exact(batch.seq * vocab);
        for (row, targets) in rows.zip(batch.targets.chunks_exact(batch.seq)) {
            if keeps(targets) {
                kept.add(batch.seq, row);
            }
        }
        Ok(())
    }
}

/// The logits of sequences, one after another as little-endian f32.
#[derive(Default)]
struct Logits {
    /// Length of each sequence.
    lengths: Vec<usize>,
    bytes: Vec<u8>,
}

impl Logits {
    fn add(&mut self, seq: usize, values: &[f32]) {
        self.lengths.push(seq);
        self.bytes.reserve(values.len() * 4);
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// One tensor of all sequences if they are equally long, or else one of each.
    fn tensors(mut self, model: &LoadedModel) -> Result<Vec<HostTensor>, TrainError> {
        let vocab = model.executor.model().vocab_size;
        let equal = self.lengths.windows(2).all(|pair| pair[0] == pair[1]);
        if equal && let Some(seq) = self.lengths.first() {
            let shape = [self.lengths.len(), *seq, vocab];
            let tensor = HostTensor::from_bytes("logits", HostDtype::F32, &shape, self.bytes)?;
            return Ok(vec![tensor]);
        }
        let mut tensors = Vec::new();
        for (i, seq) in self.lengths.iter().enumerate().rev() {
            let bytes = self.bytes.split_off(self.bytes.len() - seq * vocab * 4);
            let name = format!("logits.{i}");
            tensors.push(HostTensor::from_bytes(name, HostDtype::F32, &[*seq, vocab], bytes)?);
        }
        tensors.reverse();
        Ok(tensors)
    }
}

/// The summed cross-entropy of logits, in nats, over the targets that count.
fn cross_entropy(logits: &[f32], vocab: usize, targets: &[u32]) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact(vocab)
        .zip(targets)
        .filter(|(_, target)| **target != IGNORE)
        .map(|(row, target)| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp = |value: &f32| f64::from(value - largest).exp();
            let sum: f64 = row.iter().map(exp).sum();
            sum.ln() - f64::from(row[*target as usize] - largest)
        })
        .collect();
    losses.iter().sum()
}

/// The logits that the last unit gave, of these positions of each row: `[batch, positions, vocab]`,
/// row-major.
pub(super) fn logits_of(stream: Option<Stream>, positions: Range<usize>) -> Vec<f32> {
    match stream {
        Some(Stream::Logits(logits)) => {
            let logits = logits.slice_dim(1, positions);
            let elements: usize = logits.dims().iter().product();
            let flat = logits.cast(DType::F32).reshape([elements]);
            crate::executor::on_host(flat)
        }
        other => unreachable!("the head was asked for logits, but gave {other:?}"),
    }
}

fn read_token_ids(path: &Path, vocab: usize) -> Result<Vec<Vec<u32>>, TrainError> {
    let failed = |cause: String| TrainError::File { path: path.display().to_string(), cause };
    let text = std::fs::read_to_string(path)
        .map_err(|source| DataError::Read { path: path.to_path_buf(), source })?;
    let sequences: Vec<Vec<u32>> = serde_json::from_str(&text).map_err(|e| {
        failed(format!("expected a JSON list of lists of token ids, one list a sequence: {e}"))
    })?;
    for (i, sequence) in sequences.iter().enumerate() {
        if sequence.is_empty() {
            return Err(failed(format!("sequence {i} is empty: give at least one token")));
        }
        if let Some(id) = sequence.iter().find(|id| **id as usize >= vocab) {
            return Err(failed(format!(
                "sequence {i} has the token id {id}, but the model has {vocab} tokens (0 to {})",
                vocab - 1
            )));
        }
    }
    Ok(sequences)
}

/// A sequence as a batch of one row and one document; the last token has no target.
pub(super) fn whole_sequence(tokens: &[u32]) -> Batch {
    let mut targets: Vec<u32> = tokens.iter().skip(1).copied().collect();
    targets.resize(tokens.len(), IGNORE);
    Batch {
        batch: 1,
        seq: tokens.len(),
        tokens: tokens.to_vec(),
        targets,
        positions: (0..tokens.len() as u32).collect(),
        document_ids: vec![0; tokens.len()],
        valid_tokens: tokens.len().saturating_sub(1),
        ..Batch::default()
    }
}

/// An error of the data whose remedy is an option here, not a key of a config.
fn by_options(error: DataError) -> TrainError {
    let (path, cause) = match error {
        DataError::TokenizerNeeded { path } => {
            (path, "text needs a tokenizer: name its tokenizer.json by --tokenizer")
        }
        DataError::UnknownFormat { path } => (
            path,
            "cannot tell the format from the name: give --format jsonl, --format text or --format \
             tokens",
        ),
        other => return other.into(),
    };
    TrainError::File { path: path.display().to_string(), cause: cause.into() }
}

fn loader_options(
    model: &LoadedModel,
    path: &Path,
    reading: &Reading,
    tokenizer: Option<&Path>,
) -> Result<LoaderOptions, TrainError> {
    let run = model.config.as_ref();
    let mut data = run.map_or_else(DataConfig::default, |config| config.data.clone());
    data.validation = vec![reading.source(path, &data)];
    data.tokenizer = chosen_tokenizer(tokenizer, model.tokenizer.as_deref())?.map(PathBuf::from);
    let spec = model.executor.model();
    let seq_len = run.map_or(DEFAULT_SEQ_LEN, |c| c.training.seq_len).min(spec.max_seq_len);
    let stream = StreamOptions::training(&data, spec.vocab_size, seq_len, 0)?.validation(&data);
    Ok(LoaderOptions {
        stream,
        local_batch_size: run.map_or(1, |c| c.training.local_batch_size),
        rank: 0,
        world: 1,
        prefetch_batches: 2,
        cursor: None,
    })
}
