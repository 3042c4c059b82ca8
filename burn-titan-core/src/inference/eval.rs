//! The loss of a model on a file.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use serde::Serialize;

use super::{DEFAULT_SEQ_LEN, LoadedModel, chosen_tokenizer};
use crate::checkpoint::HostTensor;
use crate::config::{DataConfig, SourceConfig, SourceFormat, TokenDtype};
use crate::data::{Batch, DataError, IGNORE, Loader, LoaderOptions, StreamOptions};
use crate::model::{Context, HeadOutput, Stream};
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
/// vocab]`; or one tensor `logits`, `[sequences, seq, vocab]`, where all sequences are equally long.
///
/// # Errors
/// Data that cannot be read, or that has no token to predict.
pub fn evaluate(
    model: &LoadedModel,
    data: &EvalData,
    want_logits: bool,
) -> Result<(EvalResult, Vec<HostTensor>), TrainError> {
    let mut sum = Sum { model, loss: 0.0, tokens: 0, logits: want_logits.then(Vec::new) };
    match data {
        EvalData::TokenIds(path) => {
            for sequence in read_token_ids(path, model.executor.model().vocab_size)? {
                sum.add(&whole_sequence(&sequence))?;
            }
        }
        EvalData::File { path, reading, tokenizer } => {
            let options = loader_options(model, path, reading, *tokenizer)?;
            let mut loader = Loader::spawn(options).map_err(by_options)?;
            while let Some(batch) = loader.next()? {
                sum.add(&batch)?;
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
    let logits = sum.logits.map_or(Ok(vec![]), joined)?;
    Ok((result, logits))
}

struct Sum<'a> {
    model: &'a LoadedModel,
    loss: f64,
    tokens: usize,
    logits: Option<Vec<(Vec<usize>, Vec<f32>)>>,
}

impl Sum<'_> {
    fn add(&mut self, batch: &Batch) -> Result<(), TrainError> {
        let executor = &self.model.executor;
        let context = Context::new(batch, HeadOutput::Loss, executor.device());
        self.loss += loss_of(executor.forward(&context));
        self.tokens += batch.valid_tokens;
        if let Some(all) = &mut self.logits {
            let context = Context::new(batch, HeadOutput::Logits, executor.device());
            let values = logits_of(executor.forward(&context));
            let vocab = executor.model().vocab_size;
            for row in values.chunks_exact(batch.seq * vocab) {
                all.push((vec![batch.seq, vocab], row.to_vec()));
            }
        }
        Ok(())
    }
}

/// The logits that the last unit gave, `[batch, seq, vocab]` row-major.
pub(super) fn logits_of(stream: Stream) -> Vec<f32> {
    match stream {
        Stream::Logits(logits) => {
            let [batch, seq, vocab] = logits.dims();
            let flat = logits.cast(DType::F32).reshape([batch * seq * vocab]);
            crate::executor::on_host(flat)
        }
        other => unreachable!("the head was asked for logits, but gave {other:?}"),
    }
}

fn joined(rows: Vec<(Vec<usize>, Vec<f32>)>) -> Result<Vec<HostTensor>, TrainError> {
    let equal = rows.windows(2).all(|pair| pair[0].0 == pair[1].0);
    if equal && let Some((shape, _)) = rows.first() {
        let shape = [rows.len(), shape[0], shape[1]];
        let values: Vec<f32> = rows.into_iter().flat_map(|(_, values)| values).collect();
        return Ok(vec![HostTensor::from_f32("logits", &shape, &values)?]);
    }
    rows.iter()
        .enumerate()
        .map(|(i, (shape, values))| Ok(HostTensor::from_f32(format!("logits.{i}"), shape, values)?))
        .collect()
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
