//! Continuing a prompt, one token at a time.

use std::path::Path;

use super::eval::{logits_of, whole_sequence};
use super::{LoadedModel, chosen_tokenizer};
use crate::data::Tokenizer;
use crate::model::HeadOutput;
use crate::sampling::Sampler;
use crate::trainer::TrainError;

/// How a prompt is continued.
pub struct GenerateOptions<'a> {
    /// The prompt; may be empty if the model has a token that begins a document.
    pub prompt: &'a str,
    /// Tokens at most; the end-of-document token ends the text before.
    pub max_tokens: usize,
    /// The tokenizer; `None` for the one of the model.
    pub tokenizer: Option<&'a Path>,
}

/// Continues a prompt and hands out the text piece by piece, the prompt first.
///
/// The whole text so far, at most the last `seq_len` tokens that the model was trained on, runs
/// through the model for each token.
///
/// # Errors
/// A tokenizer that is missing or does not fit; logits that are not finite; what `emit` returns.
pub fn generate(
    model: &LoadedModel,
    options: &GenerateOptions,
    mut sampler: Sampler,
    mut emit: impl FnMut(&str) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let run = model.config.as_ref();
    let data = run.map(|config| &config.data);
    let Some(path) = chosen_tokenizer(options.tokenizer, model.tokenizer.as_deref())? else {
        return Err(TrainError::File {
            path: "--tokenizer".into(),
            cause: "the model's tokenizer is not known: name its tokenizer.json".into(),
        });
    };
    let tokenizer = Tokenizer::from_file(path)?;
    let special = |text: Option<&String>| text.map(|text| tokenizer.token_id(text)).transpose();
    let bos = special(data.and_then(|data| data.bos_token.as_ref()))?;
    let eos = special(data.and_then(|data| data.eos_token.as_ref()))?;
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode_prompt(options.prompt)?);
    let spec = model.executor.model();
    check(&tokens, path, spec.vocab_size)?;
    emit(options.prompt)?;
    let window = run.map_or(spec.max_seq_len, |c| c.training.seq_len.min(spec.max_seq_len));
    let mut text = tokenizer.decode_stream();
    for _ in 0..options.max_tokens {
        let start = tokens.len().saturating_sub(window);
        let batch = whole_sequence(&tokens[start..]);
        let context = model.executor.context(&batch, HeadOutput::Logits);
        let last = batch.seq - 1..batch.seq;
        let next = sampler.sample(&logits_of(model.executor.forward(&context)?, last))?;
        if Some(next) == eos {
            break;
        }
        tokens.push(next);
        emit(&text.push(next)?)?;
    }
    emit(&text.finish()?)
}

fn check(tokens: &[u32], path: &Path, vocab: usize) -> Result<(), TrainError> {
    if tokens.is_empty() {
        return Err(TrainError::File {
            path: "--prompt".into(),
            cause: "the prompt is empty: give at least one token".into(),
        });
    }
    match tokens.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(TrainError::File {
            path: path.display().to_string(),
            cause: format!(
                "the prompt has the token id {id}, but the model has {vocab} tokens: use the \
                 tokenizer that the model was trained with"
            ),
        }),
        None => Ok(()),
    }
}
