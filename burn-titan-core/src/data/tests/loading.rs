use super::*;
use crate::data::{Batch, DataError, IGNORE, Loader, LoaderOptions, PAD};

fn loader(stream: &StreamOptions, local_batch_size: usize, rank: usize, world: usize) -> Loader {
    Loader::spawn(loader_options(stream, local_batch_size, rank, world)).unwrap()
}

fn loader_options(
    stream: &StreamOptions,
    local_batch_size: usize,
    rank: usize,
    world: usize,
) -> LoaderOptions {
    let stream = stream.clone();
    LoaderOptions { stream, local_batch_size, rank, world, prefetch_batches: 3, cursor: None }
}

fn next(loader: &mut Loader) -> Batch {
    loader.next().unwrap().unwrap()
}

/// A text and a token source, shuffled.
fn mixed(folder: &Path) -> StreamOptions {
    let texts: Vec<_> = (0..40).map(|n| format!("document {n} ").repeat(n % 7)).collect();
    let text = folder.join("a.jsonl");
    std::fs::write(&text, jsonl(&texts)).unwrap();
    let flat = folder.join("b.bin");
    std::fs::write(&flat, bin_u16(&(0..500).collect::<Vec<_>>())).unwrap();
    StreamOptions { shuffle_buffer: Some(8), ..options(vec![source(text), source(flat)], 11) }
}

#[test]
fn any_number_of_ranks_reads_the_same_samples() {
    let folder = tempfile::tempdir().unwrap();
    let options = mixed(folder.path());
    let mut one = loader(&options, 6, 0, 1);
    let mut two: Vec<_> = (0..2).map(|rank| loader(&options, 3, rank, 2)).collect();
    let mut three: Vec<_> = (0..3).map(|rank| loader(&options, 2, rank, 3)).collect();
    for _ in 0..12 {
        let all = next(&mut one);
        for ranks in [&mut two, &mut three] {
            let parts: Vec<Batch> = ranks.iter_mut().map(next).collect();
            let join = |field: fn(&Batch) -> &Vec<u32>| {
                parts.iter().flat_map(|part| field(part).iter().copied()).collect::<Vec<_>>()
            };
            assert_eq!(join(|batch| &batch.tokens), all.tokens);
            assert_eq!(join(|batch| &batch.targets), all.targets);
            assert_eq!(join(|batch| &batch.positions), all.positions);
            assert_eq!(join(|batch| &batch.document_ids), all.document_ids);
            assert_eq!(parts.iter().map(|part| part.valid_tokens).sum::<usize>(), all.valid_tokens);
            assert!(parts.iter().all(|part| part.cursor_after == all.cursor_after));
        }
    }
}

#[test]
fn another_number_of_ranks_goes_on_with_the_next_samples() {
    let folder = tempfile::tempdir().unwrap();
    let options = mixed(folder.path());
    let straight = samples(&options, 40);
    let mut two = loader(&options, 2, 1, 2);
    next(&mut two);
    let cursor = next(&mut two).cursor_after;
    assert_eq!(cursor.samples, 8);
    for rank in 0..3 {
        let part = loader_options(&options, 4, rank, 3);
        let mut three =
            Loader::spawn(LoaderOptions { cursor: Some(cursor.clone()), ..part }).unwrap();
        let batch = next(&mut three);
        for (row, tokens) in batch.tokens.chunks(11).enumerate() {
            assert_eq!(tokens, &straight[8 + rank * 4 + row].tokens[..11]);
        }
    }
}

#[test]
fn a_single_pass_ends_padded_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    std::fs::write(&path, bin_u16(&(100..110).collect::<Vec<_>>())).unwrap();
    // Samples of 4: 100..104, 104..108, 108..110; the groups of 2 ranks with 2 rows hold 4.
    let options = StreamOptions { repeat: false, ..options(vec![source(&path)], 3) };
    let mut first = loader(&options, 2, 0, 2);
    let batch = next(&mut first);
    assert_eq!(batch.tokens, [100, 101, 102, 104, 105, 106]);
    assert_eq!(batch.valid_tokens, 6);
    assert_eq!(batch.cursor_after.samples, 3);
    assert!(first.next().unwrap().is_none());
    assert!(first.next().unwrap().is_none());
    let mut second = loader(&options, 2, 1, 2);
    let batch = next(&mut second);
    assert_eq!(batch.tokens, [108, 109, PAD, PAD, PAD, PAD]);
    assert_eq!(batch.targets, [109, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE]);
    assert_eq!(batch.positions, [0, 1, 0, 0, 1, 2]);
    assert_eq!(batch.document_ids, [0, 0, 1, 0, 0, 0]);
    assert_eq!(batch.valid_tokens, 1);
    assert!(second.next().unwrap().is_none());
}

#[test]
fn a_single_pass_reads_sources_one_after_another() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a.bin", "b.bin"].map(|name| folder.path().join(name));
    std::fs::write(&a, bin_u16(&[1; 5])).unwrap();
    std::fs::write(&b, bin_u16(&[2; 5])).unwrap();
    let options = StreamOptions { repeat: false, ..options(vec![source(a), source(b)], 3) };
    let tokens: Vec<_> = samples(&options, 9).into_iter().map(|sample| sample.tokens).collect();
    assert_eq!(tokens, [vec![1; 4], vec![1], vec![2; 4], vec![2]]);
}

#[test]
fn an_error_in_the_data_is_delivered_in_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    let mut tokens = vec![5; 40];
    tokens[33] = 60_000;
    std::fs::write(&path, bin_u16(&tokens)).unwrap();
    let mut loader = loader(&options(vec![source(&path)], 3), 2, 0, 1);
    for _ in 0..4 {
        assert_eq!(next(&mut loader).tokens, [5; 6]);
    }
    assert_eq!(
        loader.next().unwrap_err().to_string(),
        format!(
            "{}: token 33 of the file is 60000, but the vocabulary has 2048 tokens (0 to 2047): \
             check `token_dtype`, or that the model's `vocab_size` fits the tokenizer that made \
             the file",
            path.display()
        )
    );
    assert!(matches!(loader.next(), Err(DataError::Stopped)));
}

#[test]
fn dropping_the_loader_ends_an_endless_stream() {
    let folder = tempfile::tempdir().unwrap();
    let own = Arc::new(Tokenizer::from_file(bundled("tokenizer.json")).unwrap());
    let options = StreamOptions { tokenizer: Some(own.clone()), ..mixed(folder.path()) };
    let mut loader = loader(&options, 2, 0, 1);
    next(&mut loader);
    drop(loader);
    // What the thread held is gone with it: only `own` and `options` hold the tokenizer.
    assert_eq!(Arc::strong_count(&own), 2);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = loader_options(&mixed(folder.path()), 2, 0, 1);
    let message = |options| Loader::spawn(options).unwrap_err().to_string();
    assert_eq!(
        message(LoaderOptions { local_batch_size: 0, ..good.clone() }),
        "training.local_batch_size: expected at least 1"
    );
    assert_eq!(
        message(LoaderOptions { rank: 2, world: 2, ..good.clone() }),
        "rank: rank 2 of 2 data-parallel ranks"
    );
    let stream = |change: fn(&mut StreamOptions)| {
        let mut options = good.clone();
        change(&mut options.stream);
        message(options)
    };
    assert_eq!(stream(|stream| stream.seq_len = 0), "training.seq_len: expected at least 1");
    let none = stream(|stream| stream.shuffle_buffer = Some(0));
    assert_eq!(none, "data.shuffle_buffer: expected at least 1");
    assert_eq!(
        stream(|stream| stream.sources.clear()),
        "data.train: no source is given: name at least one file or folder"
    );
}
