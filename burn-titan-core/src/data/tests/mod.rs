//! Tests of the whole path from files to batches, with helpers that write the files.

mod errors;
mod loading;
mod packing;
mod resume;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::{SampleStream, StreamOptions, Tokenizer};
use crate::config::schema::{SourceConfig, SourceFormat, TokenDtype};

/// Vocabulary of the bundled tokenizer.
const VOCABULARY: usize = 2048;

fn bundled(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(name)
}

fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let load = || Arc::new(Tokenizer::from_file(bundled("tokenizer.json")).unwrap());
    TOKENIZER.get_or_init(load).clone()
}

fn source(path: impl Into<PathBuf>) -> SourceConfig {
    SourceConfig {
        path: path.into(),
        weight: 1.0,
        format: SourceFormat::Auto,
        text_key: "text".into(),
        token_dtype: TokenDtype::U16,
    }
}

/// Packed training in file order, without bos and eos.
fn options(sources: Vec<SourceConfig>, seq_len: usize) -> StreamOptions {
    StreamOptions {
        sources,
        repeat: true,
        tokenizer: Some(tokenizer()),
        bos: None,
        eos: None,
        vocab_size: VOCABULARY,
        seq_len,
        seed: 5,
        shuffle_buffer: None,
        pack: true,
    }
}

fn samples(options: &StreamOptions, count: usize) -> Vec<super::pack::Sample> {
    let mut stream = SampleStream::open(options, None).unwrap();
    (0..count).map_while(|_| stream.next_sample().unwrap()).collect()
}

fn jsonl<S: AsRef<str>>(documents: &[S]) -> Vec<u8> {
    let line = |text: &S| serde_json::json!({"id": 1, "text": text.as_ref()}).to_string() + "\n";
    documents.iter().map(line).collect::<String>().into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn bin_u16(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect()
}

/// A `.npy` file of version 1.
fn npy(descr: &str, shape: &str, body: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(body);
    bytes
}
