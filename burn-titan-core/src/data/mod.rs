//! The data of a run: from files to batches of token ids.
//!
//! ```text
//! source     which files a source has, and how each is opened
//! jsonl, documents        documents of JSONL and text files, not tokenized yet
//! npy, tokens             memory-mapped files of token ids
//! tokenizer               text to token ids and back; training of a tokenizer
//! shuffle                 the seeded order of a source's units
//! units                   units of tokens in that order, tokenized ahead
//! pack                    units to samples of `seq_len + 1` tokens, samples to rows of a batch
//! mix, stream             several sources to one endless stream of samples
//! cursor                  where a stream stands, and what it was made of
//! loader                  a background thread that keeps batches ready
//! ```
//!
//! **The order of samples is a pure function of (seed, cursor).** Nothing that is buffered is part
//! of a cursor: a stream that continues from one reads its current document again. The number of
//! ranks does not change the order either; each rank takes its share of the one global stream.

pub mod cursor;
pub mod documents;
pub mod error;
mod jsonl;
pub mod loader;
mod mix;
mod npy;
pub mod pack;
mod shuffle;
pub mod source;
pub mod stream;
pub mod tokenizer;
mod tokens;
mod units;

#[cfg(test)]
mod tests;

pub use cursor::{Cursor, SourceCursor, StreamIdentity};
pub use documents::{DocumentRef, Place};
pub use error::DataError;
pub use loader::{Batch, Loader, LoaderOptions};
pub use pack::{IGNORE, PAD};
pub use stream::{SampleStream, StreamOptions};
pub use tokenizer::{DecodeStream, Tokenizer, TokenizerError};
