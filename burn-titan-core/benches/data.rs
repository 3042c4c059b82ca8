//! Tokens a second of reading, tokenizing, packing and batching the bundled corpus.
//!
//! `cargo bench --profile release --bench data`

use std::path::Path;
use std::time::Instant;

use burn_titan_core::config::schema::{DataConfig, SourceConfig, SourceFormat, TokenDtype};
use burn_titan_core::data::{Loader, LoaderOptions, StreamOptions};

const RUNS: usize = 5;
const VOCAB_SIZE: usize = 2048;
const SEQ_LEN: usize = 512;
const BATCH: usize = 8;

/// One pass over the corpus with nothing warm but the disk cache, in tokens and seconds.
fn pass(data: &DataConfig) -> (usize, f64) {
    let stream = StreamOptions::training(data, VOCAB_SIZE, SEQ_LEN, 42)
        .expect("the bundled tokenizer is usable");
    let start = Instant::now();
    let mut loader = Loader::spawn(LoaderOptions {
        stream,
        local_batch_size: BATCH,
        rank: 0,
        world: 1,
        prefetch_batches: data.prefetch_batches,
        cursor: None,
    })
    .expect("the bundled corpus is usable");
    let mut tokens = 0;
    while let Some(batch) = loader.next().expect("the bundled corpus is sound") {
        tokens += batch.tokens.len();
        if batch.cursor_after.sources[0].epoch > 0 {
            break;
        }
    }
    (tokens, start.elapsed().as_secs_f64())
}

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    let data = DataConfig {
        train: vec![SourceConfig {
            path: folder.join("shakespeare/train.jsonl"),
            weight: 1.0,
            format: SourceFormat::Auto,
            text_key: "text".into(),
            token_dtype: TokenDtype::U16,
        }],
        tokenizer: Some(folder.join("tokenizer.json")),
        bos_token: Some("<|begin_of_text|>".into()),
        eos_token: Some("<|end_of_text|>".into()),
        ..Default::default()
    };
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let (tokens, seconds) = pass(&data);
            println!("{tokens} tokens in {seconds:.3} s: {:.0} tokens/s", tokens as f64 / seconds);
            tokens as f64 / seconds
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "tokenize and pack, median of {RUNS} on {cores} cores: {:.0} tokens/s",
        rates[RUNS / 2]
    );
}
