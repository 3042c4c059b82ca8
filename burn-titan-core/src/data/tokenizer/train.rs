//! Training of a byte-level BPE tokenizer (Sennrich et al., 2016; on bytes as in GPT-2).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Trainer};

use super::byte_level::{byte_alphabet, pieces};
use super::{Tokenizer, TokenizerError};
use crate::config::schema::{SourceConfig, SourceFormat, TokenDtype};
use crate::data::documents::RawDocuments;
use crate::data::error::DataError;
use crate::data::source::SourceFiles;

/// Special token with id 0, meant for `data.bos_token`.
pub const BEGIN_OF_TEXT: &str = "<|begin_of_text|>";
/// Special token with id 1, meant for `data.eos_token`.
pub const END_OF_TEXT: &str = "<|end_of_text|>";

/// Tokens that every vocabulary has: the bytes and the special tokens.
const LEAST_VOCABULARY: usize = 256 + 2;

/// How a text is cut before merging: English contractions, letters with the space before them, up
/// to three digits, punctuation, line ends, other white space. There is no look-around in it, so
/// that the regular-expression engine never backtracks. Every character matches some branch.
const PATTERN: &str = concat!(
    r"'(?i:s|d|m|t|ll|ve|re)",
    r"| ?[\p{L}\p{M}]+",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+",
    r"|\s*[\r\n]+",
    r"|\s+",
);

/// Trains a byte-level BPE tokenizer on JSONL files (their key `text`) and text files, plain or
/// compressed, or folders of them, and writes it to `out` as a `tokenizer.json`.
///
/// The vocabulary has exactly `vocab_size` tokens: [`BEGIN_OF_TEXT`] (0), [`END_OF_TEXT`] (1), the
/// 256 bytes, then the merges. Any UTF-8 text survives encoding and decoding. The same input gives
/// the same file, byte for byte.
///
/// # Errors
/// Input that cannot be read, a `vocab_size` below 258 or above what the text gives, and an output
/// that cannot be written.
pub fn train(vocab_size: usize, inputs: &[PathBuf], out: &Path) -> Result<Tokenizer, DataError> {
    if vocab_size < LEAST_VOCABULARY {
        let (asked, least) = (vocab_size, LEAST_VOCABULARY);
        return Err(TokenizerError::VocabularyTooSmall { asked, least }.into());
    }
    if inputs.is_empty() {
        return Err(TokenizerError::NoInputs.into());
    }
    let sources = inputs.iter().map(|path| text_source(path)).collect::<Result<Vec<_>, _>>()?;
    let failed = |cause: tokenizers::Error| TokenizerError::Failed {
        path: out.to_path_buf(),
        action: "train",
        cause: cause.to_string(),
    };
    let split =
        Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(failed)?;
    let mut trainer = bpe_trainer(vocab_size);
    count_words(&mut trainer, &split, sources)?.map_err(failed)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(failed)?;
    let tokenizer = assemble(model, split).map_err(failed)?;
    let reached = tokenizer.get_vocab_size(true);
    if reached < vocab_size {
        return Err(TokenizerError::VocabularyUnreachable { asked: vocab_size, reached }.into());
    }
    let json = tokenizer.to_string(true).map_err(failed)? + "\n";
    write_aside(out, json.as_bytes())
        .map_err(|source| TokenizerError::Write { path: out.to_path_buf(), source })?;
    Ok(Tokenizer::from_bytes(json.as_bytes(), out.to_path_buf())?)
}

fn text_source(path: &Path) -> Result<Arc<SourceFiles>, DataError> {
    let source = SourceFiles::find(&SourceConfig {
        path: path.to_path_buf(),
        weight: 1.0,
        format: SourceFormat::Auto,
        text_key: "text".into(),
        token_dtype: TokenDtype::U16,
    })?;
    if source.is_tokens() {
        return Err(TokenizerError::NotText { path: source.path }.into());
    }
    Ok(Arc::new(source))
}

fn special_tokens() -> Vec<AddedToken> {
    [BEGIN_OF_TEXT, END_OF_TEXT].map(|token| AddedToken::from(token, true)).into()
}

fn bpe_trainer(vocab_size: usize) -> BpeTrainer {
    BpeTrainer::builder()
        .vocab_size(vocab_size)
        .special_tokens(special_tokens())
        .initial_alphabet(HashSet::from(byte_alphabet()))
        .show_progress(false)
        .build()
}

/// Counts the words of all documents, in parallel. The outer error is of the data, the inner one of
/// the library.
fn count_words(
    trainer: &mut BpeTrainer,
    split: &Split,
    sources: Vec<Arc<SourceFiles>>,
) -> Result<tokenizers::Result<()>, DataError> {
    let alphabet = byte_alphabet();
    let mut failure = None;
    let texts = sources.into_iter().flat_map(|source| {
        let mut documents = RawDocuments::new(source.clone());
        std::iter::from_fn(move || documents.next().transpose())
            .map(move |document| document.and_then(|document| document.text(&source.text_key)))
    });
    let texts = texts.map_while(|text| text.map_err(|error| failure = Some(error)).ok());
    let counted = trainer.feed(texts, |text| {
        let letters = |piece: &str| piece.bytes().map(|byte| alphabet[usize::from(byte)]).collect();
        Ok(pieces(&split.regex, text).map(letters).collect())
    });
    failure.map_or(Ok(counted), Err)
}

fn assemble(model: BPE, split: Split) -> tokenizers::Result<tokenizers::Tokenizer> {
    let bytes = ByteLevel::new(false, true, false);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    tokenizer.with_decoder(Some(bytes));
    tokenizer.add_special_tokens(special_tokens())?;
    Ok(tokenizer)
}

/// Writes a file beside its place and moves it there, so that a torn one is never seen.
fn write_aside(out: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut aside = out.as_os_str().to_owned();
    aside.push(".partial");
    std::fs::write(&aside, bytes)?;
    std::fs::rename(&aside, out)
}
