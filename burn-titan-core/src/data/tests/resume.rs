use std::collections::HashSet;
use std::path::Path;

use super::*;
use crate::data::DataError;
use crate::data::cursor::Cursor;
use crate::data::pack::Sample;

/// Documents of all lengths; some empty, some longer than several windows.
fn texts(count: usize, salt: usize) -> Vec<String> {
    (0..count)
        .map(|index| match (index + salt) % 5 {
            0 => String::new(),
            1 => format!("{index}"),
            2 => format!("word{salt} {index} ").repeat(25),
            _ => format!("document {index} of {salt} says: \u{e9}\u{4e2d} {}", index * salt),
        })
        .collect()
}

/// A corpus of every kind of source.
fn corpus(folder: &Path) -> Vec<SourceConfig> {
    let many = folder.join("many");
    std::fs::create_dir(&many).unwrap();
    std::fs::write(many.join("1.jsonl.gz"), gzip(&jsonl(&texts(7, 1)))).unwrap();
    // Two members, as `cat` makes them.
    let members = [gzip(&jsonl(&texts(4, 2))), gzip(&jsonl(&texts(3, 3)))].concat();
    std::fs::write(many.join("2.jsonl.gz"), members).unwrap();
    std::fs::write(many.join("3.txt"), "a text file of its own, with some words").unwrap();
    std::fs::write(many.join("4.jsonl.zst"), zstd(&jsonl(&texts(5, 4)))).unwrap();
    std::fs::write(many.join("5.txt"), "").unwrap();
    let tokens: Vec<u32> = (0..333).map(|n| n * 7 % 50).collect();
    let flat = folder.join("flat.bin");
    std::fs::write(&flat, bin_u16(&tokens)).unwrap();
    let rows = folder.join("rows.npy");
    std::fs::write(&rows, npy("<u2", "(5, 21)", &bin_u16(&tokens[..105]))).unwrap();
    let weighted = |path, weight| SourceConfig { weight, ..source(path) };
    vec![weighted(many, 3.0), weighted(flat, 2.0), weighted(rows, 1.0)]
}

fn variants(folder: &Path) -> Vec<StreamOptions> {
    let base = options(corpus(folder), 9);
    let mut variants = Vec::new();
    for shuffle_buffer in [None, Some(1), Some(4), Some(1000)] {
        for pack in [true, false] {
            for special in [None, Some(1)] {
                let (bos, eos) = (special, special);
                variants.push(StreamOptions { shuffle_buffer, pack, bos, eos, ..base.clone() });
            }
        }
    }
    variants
}

#[test]
fn resuming_from_every_cursor_equals_the_straight_stream() {
    let folder = tempfile::tempdir().unwrap();
    for options in variants(folder.path()) {
        let mut stream = SampleStream::open(&options, None).unwrap();
        let mut straight: Vec<(Sample, Cursor)> = Vec::new();
        let mut cursors = vec![stream.cursor()];
        for _ in 0..160 {
            let sample = stream.next_sample().unwrap().unwrap();
            straight.push((sample, stream.cursor()));
            cursors.push(stream.cursor());
        }
        assert!(cursors[160].sources.iter().all(|source| source.epoch > 0), "too short to wrap");
        for (at, cursor) in cursors.iter().enumerate().take(150) {
            let saved = serde_json::to_string(cursor).unwrap();
            let cursor: Cursor = serde_json::from_str(&saved).unwrap();
            let mut resumed = SampleStream::open(&options, Some(&cursor)).unwrap();
            for (sample, after) in &straight[at..at + 8] {
                assert_eq!(resumed.next_sample().unwrap().as_ref(), Some(sample), "from {saved}");
                assert_eq!(resumed.cursor(), *after);
            }
        }
    }
}

#[test]
fn passed_over_samples_move_the_cursor_alike() {
    let folder = tempfile::tempdir().unwrap();
    for options in variants(folder.path()) {
        let mut read = SampleStream::open(&options, None).unwrap();
        let mut passed = SampleStream::open(&options, None).unwrap();
        for _ in 0..80 {
            read.next_sample().unwrap();
            assert!(passed.skip_sample().unwrap());
            assert_eq!(read.cursor(), passed.cursor());
        }
        assert_eq!(read.next_sample().unwrap(), passed.next_sample().unwrap());
    }
}

/// The first token of each document of one-token documents, pass after pass.
fn order(options: &StreamOptions, count: usize) -> Vec<u32> {
    samples(options, count).iter().map(|sample| sample.tokens[0]).collect()
}

#[test]
fn shuffled_passes_differ_and_hold_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letters.jsonl");
    let letters: Vec<String> = ('!'..='z').map(String::from).collect();
    let count = letters.len();
    std::fs::write(&path, jsonl(&letters)).unwrap();
    let ordered = StreamOptions { pack: false, ..options(vec![source(&path)], 4) };
    let in_file = order(&ordered, 2 * count);
    let expected: Vec<_> =
        letters.iter().map(|letter| tokenizer().encode(letter).unwrap()[0]).collect();
    assert_eq!(in_file, [&expected[..], &expected[..]].concat());

    let shuffled = StreamOptions { shuffle_buffer: Some(1000), ..ordered.clone() };
    let both = order(&shuffled, 2 * count);
    let (first, second) = both.split_at(count);
    assert_ne!(first, second);
    assert_ne!(first, expected);
    let set = |tokens: &[u32]| tokens.iter().copied().collect::<HashSet<_>>();
    assert_eq!(set(first), set(&expected));
    assert_eq!(set(second), set(&expected));
    assert_ne!(order(&StreamOptions { seed: 6, ..shuffled.clone() }, count), first);
    assert_eq!(order(&shuffled, count), first);

    // Documents leave their block of ten in no pass.
    let blocks = StreamOptions { shuffle_buffer: Some(10), ..ordered };
    let mixed = order(&blocks, count);
    for (block, original) in mixed.chunks(10).zip(expected.chunks(10)) {
        assert_eq!(set(block), set(original));
    }
}

#[test]
fn sources_are_mixed_by_weight() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, token| {
        let path = folder.path().join(name);
        std::fs::write(&path, bin_u16(&[token; 64])).unwrap();
        path
    };
    let sources = [("a.bin", 10, 1.0), ("b.bin", 20, 0.0), ("c.bin", 30, 3.0)];
    let sources =
        sources.map(|(name, token, weight)| SourceConfig { weight, ..source(file(name, token)) });
    let drawn = order(&options(sources.to_vec(), 7), 4000);
    let count = |token| drawn.iter().filter(|&&drawn| drawn == token).count();
    assert_eq!(count(20), 0);
    // Five standard deviations are 137.
    assert!(count(10).abs_diff(1000) < 137 && count(30).abs_diff(3000) < 137, "{}", count(10));
}

#[test]
fn changed_data_is_refused_at_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, jsonl(&["some words", "and more"])).unwrap();
    let options = options(vec![source(&path)], 3);
    let cursor = SampleStream::open(&options, None).unwrap().cursor();
    let bytes = std::fs::metadata(&path).unwrap().len();
    std::fs::write(&path, jsonl(&["some words", "and more", ""])).unwrap();
    let error = SampleStream::open(&options, Some(&cursor)).err().unwrap();
    let now = std::fs::metadata(&path).unwrap().len();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot continue the stream of data: {}: the file \"a.jsonl\" has changed from {bytes} \
             to {now} bytes since the checkpoint was written: restore the files, or start a new \
             run",
            path.display()
        )
    );
}

#[test]
fn altered_cursors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, jsonl(&["a", "b", "c"])).unwrap();
    let flat = folder.path().join("a.bin");
    std::fs::write(&flat, bin_u16(&[1; 8])).unwrap();
    let refuse = |path: &Path, shuffle_buffer, document, token| {
        let options = StreamOptions { shuffle_buffer, ..options(vec![source(path)], 3) };
        let mut cursor = SampleStream::open(&options, None).unwrap().cursor();
        (cursor.sources[0].document, cursor.sources[0].token) = (document, token);
        let mut stream = SampleStream::open(&options, Some(&cursor)).unwrap();
        let error = stream.next_sample().unwrap_err().to_string();
        let (start, rest) = error.split_once("points at ").unwrap();
        assert_eq!(start, format!("{}: the checkpoint's data cursor ", path.display()));
        rest.split_once(": ").unwrap().0.to_owned()
    };
    for shuffle_buffer in [None, Some(2), Some(100)] {
        let short = "document 5, but a pass has only 3";
        assert_eq!(refuse(&path, shuffle_buffer, 5, 0), short);
        assert_eq!(refuse(&path, shuffle_buffer, 1, 9), "token 9 of document 1, which has 1");
        let short = "document 5, but a pass has only 2";
        assert_eq!(refuse(&flat, shuffle_buffer, 5, 0), short);
    }
    // More tokens than an address can count must not wrap around.
    let error = refuse(&flat, None, 0, u64::MAX);
    assert_eq!(error, format!("token {} of document 0, which has 4", u64::MAX));
    // A source without a place must not start again unasked.
    let options = options(vec![source(&path), source(&flat)], 3);
    let mut cursor = SampleStream::open(&options, None).unwrap().cursor();
    cursor.sources.pop();
    let error = SampleStream::open(&options, Some(&cursor)).err().unwrap();
    assert!(matches!(error, DataError::CursorPlaces { places: 1, sources: 2 }), "{error}");
}
