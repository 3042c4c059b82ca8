//! What can be wrong with the data of a run.

use std::io;
use std::path::PathBuf;

use super::tokenizer::TokenizerError;

/// An error in the data of a run. Its text names the file and the place in it, the cause and the
/// remedy.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is named and explained by its variant's message")]
pub enum DataError {
    /// The list of sources is empty.
    #[error("data.{split}: no source is given: name at least one file or folder")]
    NoSources { split: &'static str },
    /// A file or folder cannot be opened or read.
    #[error("{path}: cannot read: {source}: check that the path exists and may be read")]
    Read { path: PathBuf, source: io::Error },
    /// A folder without files.
    #[error("{path}: the folder holds no data files: put files in it or name another path")]
    EmptyFolder { path: PathBuf },
    /// A folder in a source folder, or a thing that is neither file nor folder.
    #[error(
        "{path}: not a regular file: only the files directly in a source folder are read, so move \
         it out, or name it as a source of its own"
    )]
    NotAFile { path: PathBuf },
    /// The ending of a name says nothing.
    #[error(
        "{path}: cannot tell the format from the name: expected the ending .jsonl, .txt (both also \
         with .gz or .zst), .bin or .npy: rename the file or set the source's `format`"
    )]
    UnknownFormat { path: PathBuf },
    /// Token files are memory-mapped, so they cannot be compressed.
    #[error("{path}: files of tokens are memory-mapped and cannot be compressed: decompress it")]
    CompressedTokens { path: PathBuf },
    /// One folder with text and tokens.
    #[error(
        "{path}: the folder mixes text with token files (here {file:?}): make each kind a source \
         of its own"
    )]
    MixedFolder { path: PathBuf, file: String },
    /// A damaged compressed file.
    #[error(
        "{path}: the {format} stream is torn or damaged after line {line} ({source}): fetch or \
         make the file again"
    )]
    Torn { path: PathBuf, format: &'static str, line: u64, source: io::Error },
    /// A line that is not JSON.
    #[error(
        "{path}: line {line}, column {column}: bad JSON: {cause}: each line must be one JSON object"
    )]
    Json { path: PathBuf, line: u64, column: usize, cause: String },
    /// A line that is JSON, but not an object.
    #[error("{path}: line {line}: expected a JSON object with the key {key:?}, found {found}")]
    NotAnObject { path: PathBuf, line: u64, key: String, found: &'static str },
    /// A line without the text.
    #[error(
        "{path}: line {line}: no key {key:?} in the JSON object (its keys: {keys}): set the \
         source's `text_key` to the key that holds the text"
    )]
    MissingKey { path: PathBuf, line: u64, key: String, keys: String },
    /// A line whose text is no text.
    #[error(
        "{path}: line {line}: the key {key:?} holds {found}, expected a string: set the source's \
         `text_key` to the key that holds the text"
    )]
    NotAString { path: PathBuf, line: u64, key: String, found: &'static str },
    /// Bytes that are not UTF-8 in a line of JSONL.
    #[error("{path}: line {line}: not UTF-8 (byte {byte} of the line): convert the file to UTF-8")]
    LineNotUtf8 { path: PathBuf, line: u64, byte: usize },
    /// Bytes that are not UTF-8 in a text file.
    #[error("{path}: not UTF-8 (byte {byte} of the text): convert the file to UTF-8")]
    TextNotUtf8 { path: PathBuf, byte: usize },
    /// A `.bin` file that ends in the middle of a token.
    #[error(
        "{path}: {bytes} bytes are no whole number of {width}-byte tokens: set the source's \
         `token_dtype` to the width the file was written with, or write the file again"
    )]
    TokenFileSize { path: PathBuf, bytes: u64, width: u64 },
    /// A `.npy` file that cannot be used.
    #[error(
        "{path}: {cause}: save it by numpy.save as a 1-D or 2-D array of uint16, uint32, int32 or \
         int64"
    )]
    Npy { path: PathBuf, cause: String },
    /// A stored token that the model does not have.
    #[error(
        "{path}: token {offset} of the file is {id}, but the vocabulary has {vocabulary} tokens (0 \
         to {last}): check `token_dtype`, or that the model's `vocab_size` fits the tokenizer \
         that made the file",
        last = vocabulary.saturating_sub(1)
    )]
    OutOfVocabulary { path: PathBuf, offset: u64, id: i64, vocabulary: usize },
    /// Something about the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Text without a tokenizer.
    #[error("{path}: text needs a tokenizer: set data.tokenizer to a tokenizer.json")]
    TokenizerNeeded { path: PathBuf },
    /// A tokenizer that makes ids the model does not have.
    #[error(
        "{path}: the tokenizer has {tokens} tokens, the model only {vocabulary}: set the model's \
         `vocab_size` to at least {tokens}, or use the tokenizer that belongs to the model"
    )]
    TokenizerTooLarge { path: PathBuf, tokens: usize, vocabulary: usize },
    /// A special token by its text, without a tokenizer to look it up.
    #[error("data.{key}: the token {text:?} is looked up in the tokenizer: set data.tokenizer too")]
    SpecialTokenNeedsTokenizer { key: &'static str, text: String },
    /// A weight that is no share.
    #[error("data.train[{index}].weight: {weight}: expected a finite number that is not negative")]
    Weight { index: usize, weight: f64 },
    /// Nothing has a share.
    #[error("data.train: all weights are 0: give at least one source a weight above 0")]
    NoWeight,
    /// A whole pass over a source gave nothing.
    #[error(
        "{path}: a whole pass gave not one token: the documents are empty, so check the file and \
         `text_key`"
    )]
    NoTokens { path: PathBuf },
    /// An option that makes no sense.
    #[error("{name}: {cause}")]
    Option { name: &'static str, cause: String },
    /// A resume with other settings.
    #[error(
        "cannot continue the stream of data: {name} was {saved} when the checkpoint was written \
         and is {now} now: set it back, or start a new run"
    )]
    ChangedSetting { name: &'static str, saved: String, now: String },
    /// A resume with other files.
    #[error(
        "cannot continue the stream of data: {path}: {change} since the checkpoint was written: \
         restore the files, or start a new run"
    )]
    ChangedFiles { path: PathBuf, change: String },
    /// A cursor that points nowhere.
    #[error(
        "{path}: the checkpoint's data cursor points at {what}: the file or the checkpoint was \
         altered, so restore it, or start a new run"
    )]
    CursorBeyond { path: PathBuf, what: String },
    /// A cursor that says nothing of some of its sources.
    #[error(
        "the checkpoint's data cursor has places in {places} sources, but was made of {sources}: the \
         checkpoint was altered, so restore it, or start a new run"
    )]
    CursorPlaces { places: usize, sources: usize },
    /// No thread.
    #[error("cannot start the data thread: {0}")]
    Thread(io::Error),
    /// A defect of this program.
    #[error(
        "the data thread panicked: {message}: this is a defect of burn-titan, please report it"
    )]
    Panicked { message: String },
    /// `next` was called again after an error.
    #[error("the data thread has stopped after the error that was reported before")]
    Stopped,
}
