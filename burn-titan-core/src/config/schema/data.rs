//! The section `data`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What it is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Training sources, mixed by weight.
    #[schemars(length(min = 1))]
    pub train: Vec<SourceConfig>,
    /// Held-out sources, read in order and never shuffled.
    pub validation: Vec<SourceConfig>,
    /// `tokenizer.json` of the `tokenizers` library. Needed for `jsonl` and `text` sources.
    pub tokenizer: Option<PathBuf>,
    /// Token put before each document, by its text (for example `<|begin_of_text|>`). Default: none.
    pub bos_token: Option<String>,
    /// Token put after each document, by its text; in a `tokens` source it ends a document. Default: none.
    pub eos_token: Option<String>,
    /// Whether documents are read in a seeded random order.
    pub shuffle: bool,
    /// Documents that are shuffled among each other at a time (in documents; windows of a `tokens` source).
    #[schemars(range(min = 1))]
    pub shuffle_buffer: usize,
    /// Whether documents are packed into full sequences (concatenate, then split). If not, each
    /// document is cut into pieces of at most one sequence and padded.
    pub pack: bool,
    /// Batches made ready ahead of the step by the background thread.
    #[schemars(range(min = 1, max = 1024))]
    pub prefetch_batches: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: vec![],
            validation: vec![],
            tokenizer: None,
            bos_token: None,
            eos_token: None,
            shuffle: true,
            shuffle_buffer: 10_000,
            pack: true,
            prefetch_batches: 4,
        }
    }
}

/// One file, or one folder of files, to read documents from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// File, or folder whose files are read in the order of their names.
    #[schemars(length(min = 1))]
    pub path: PathBuf,
    /// Share of samples drawn from this source, relative to the other sources.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub weight: f64,
    /// How the file is read. `auto` goes by the name's ending.
    #[serde(default)]
    pub format: SourceFormat,
    /// Key of a `jsonl` line that holds the text.
    #[serde(default = "text_key")]
    #[schemars(length(min = 1))]
    pub text_key: String,
    /// Width of the integers in a `.bin` file of tokens (a `.npy` file says its own).
    #[serde(default)]
    pub token_dtype: TokenDtype,
}

fn one() -> f64 {
    1.0
}

fn text_key() -> String {
    "text".into()
}

impl SourceConfig {
    /// A source of one path, everything else by default.
    pub fn of_path(path: PathBuf) -> Self {
        Self {
            path,
            weight: one(),
            format: SourceFormat::default(),
            text_key: text_key(),
            token_dtype: TokenDtype::default(),
        }
    }
}

/// How a source is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceFormat {
    /// By the name's ending: `.jsonl`, `.txt`, `.bin`, `.npy`, the first two also with `.gz` or `.zst`.
    #[default]
    Auto,
    /// One JSON object a line.
    Jsonl,
    /// Plain text; the whole file is one document.
    Text,
    /// Token ids: `.bin` of little-endian integers, or `.npy`.
    Tokens,
}

impl SourceFormat {
    /// The format that the ending of a file's name says, as `auto` reads it. `None` where the ending
    /// says nothing.
    pub fn of_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let packed = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst"));
        match packed.unwrap_or(&name).rsplit_once('.')?.1 {
            "jsonl" => Some(Self::Jsonl),
            "txt" => Some(Self::Text),
            "bin" | "npy" if packed.is_none() => Some(Self::Tokens),
            _ => None,
        }
    }
}

/// Width of stored token ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenDtype {
    /// 16-bit unsigned, little-endian.
    #[default]
    U16,
    /// 32-bit unsigned, little-endian.
    U32,
}
