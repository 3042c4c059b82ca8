use proptest::prelude::*;

use super::*;
use crate::data::documents::{DocumentRef, Place};
use crate::data::pack::{IGNORE, PAD, Rows, Sample};

/// A token and the number of the document it belongs to, over all passes.
type Tagged = (u32, usize);

fn tagged(documents: &[Vec<u32>], passes: usize) -> Vec<Tagged> {
    let documents = (0..passes).flat_map(|_| documents);
    let tag = |(number, tokens): (usize, &Vec<u32>)| {
        tokens.iter().map(|&token| (token, number)).collect::<Vec<_>>()
    };
    documents.enumerate().flat_map(tag).collect()
}

/// The row of a window, position by position.
fn reference_row(window: &[Tagged], seq: usize) -> Rows {
    let mut rows = Rows::default();
    for index in 0..seq {
        let document = |index: usize| window.get(index).map(|tagged| tagged.1);
        let mut distinct: Vec<_> = (0..=index).map(document).collect();
        distinct.dedup();
        let mut start = index;
        while start > 0 && document(start - 1) == document(index) {
            start -= 1;
        }
        let target = window.get(index + 1).filter(|next| Some(next.1) == document(index));
        rows.tokens.push(window.get(index).map_or(PAD, |tagged| tagged.0));
        rows.targets.push(target.map_or(IGNORE, |next| next.0));
        rows.positions.push((index - start) as u32);
        rows.document_ids.push(distinct.len() as u32 - 1);
    }
    rows
}

fn check(samples: &[Sample], windows: &[&[Tagged]], seq: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(samples.len(), windows.len());
    for (sample, window) in samples.iter().zip(windows) {
        let mut rows = Rows::default();
        let valid = rows.push(sample, seq);
        let expected = reference_row(window, seq);
        prop_assert_eq!(valid, expected.targets.iter().filter(|&&t| t != IGNORE).count());
        prop_assert_eq!(rows, expected);
    }
    Ok(())
}

fn document() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-e \n]{1,6}", "\\PC{0,40}", "[a-z ]{30,120}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Text against concatenate-then-split (packed) and against cutting (not packed).
    #[test]
    fn text(
        texts in prop::collection::vec(document(), 1..12),
        seq in 1_usize..24,
        bos in prop::option::of(Just(0)),
        eos in prop::option::of(Just(1)),
    ) {
        let encode = |text: &String| {
            let tokens = tokenizer().encode(text).unwrap();
            if tokens.is_empty() {
                return tokens;
            }
            bos.into_iter().chain(tokens).chain(eos).collect()
        };
        let documents: Vec<Vec<u32>> = texts.iter().map(encode).collect();
        prop_assume!(documents.iter().any(|document| !document.is_empty()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, jsonl(&texts)).unwrap();
        let mut options = StreamOptions { bos, eos, ..options(vec![source(&path)], seq) };

        let stream = tagged(&documents, 3);
        let windows: Vec<_> = stream.chunks_exact(seq + 1).collect();
        check(&samples(&options, windows.len()), &windows, seq)?;

        options.repeat = false;
        let stream = tagged(&documents, 1);
        let windows: Vec<_> = stream.chunks(seq + 1).collect();
        check(&samples(&options, usize::MAX), &windows, seq)?;

        options.pack = false;
        let documents = stream.chunk_by(|a, b| a.1 == b.1);
        let pieces: Vec<_> = documents.flat_map(|document| document.chunks(seq + 1)).collect();
        check(&samples(&options, usize::MAX), &pieces, seq)?;
    }

    /// Token files against the same references, with and without a token that ends documents.
    #[test]
    fn stored(
        files in prop::collection::vec(prop::collection::vec(0_u32..8, 0..60), 1..4),
        seq in 1_usize..24,
        eos in prop::option::of(Just(0)),
    ) {
        prop_assume!(files.iter().any(|file| !file.is_empty()));
        let folder = tempfile::tempdir().unwrap();
        for (index, file) in files.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index}.bin")), bin_u16(file)).unwrap();
        }
        let documents: Vec<Vec<u32>> = files
            .iter()
            .flat_map(|file| file.split_inclusive(|&token| Some(token) == eos).map(Vec::from))
            .collect();
        let mut options =
            StreamOptions { eos, tokenizer: None, ..options(vec![source(folder.path())], seq) };

        let stream = tagged(&documents, 3);
        let windows: Vec<_> = stream.chunks_exact(seq + 1).collect();
        check(&samples(&options, windows.len()), &windows, seq)?;

        (options.repeat, options.pack) = (false, false);
        let stream = tagged(&documents, 1);
        let documents = stream.chunk_by(|a, b| a.1 == b.1);
        let pieces: Vec<_> = documents.flat_map(|document| document.chunks(seq + 1)).collect();
        check(&samples(&options, usize::MAX), &pieces, seq)?;
    }

    /// Whatever the order, a pass over shuffled token files gives each chunk once.
    #[test]
    fn shuffled_chunks(tokens in 1_usize..200, buffer in 1_usize..20, seed: u64) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        std::fs::write(&path, bin_u16(&(0..tokens as u32).collect::<Vec<_>>())).unwrap();
        let shuffle_buffer = Some(buffer);
        let options = StreamOptions {
            shuffle_buffer, seed, repeat: false, pack: false, ..options(vec![source(&path)], 6)
        };
        let samples = samples(&options, usize::MAX);
        let mut firsts: Vec<_> = samples.iter().map(|sample| sample.tokens[0]).collect();
        for (place, &first) in firsts.iter().enumerate() {
            prop_assert_eq!(place / buffer, first as usize / 7 / buffer);
        }
        firsts.sort();
        prop_assert_eq!(firsts, (0..tokens as u32).step_by(7).collect::<Vec<_>>());
    }
}

#[test]
fn rows_of_an_array_are_samples_as_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let numbers: Vec<u32> = (0..20).map(|n| n * 100).collect();
    let bodies: [(&str, Vec<u8>); 4] = [
        ("<u2", bin_u16(&numbers)),
        ("<u4", numbers.iter().flat_map(|n| n.to_le_bytes()).collect()),
        ("<i4", numbers.iter().flat_map(|n| (*n as i32).to_le_bytes()).collect()),
        ("<i8", numbers.iter().flat_map(|n| i64::from(*n).to_le_bytes()).collect()),
    ];
    for (descr, body) in bodies {
        let path = folder.path().join("golden.npy");
        std::fs::write(&path, npy(descr, "(4, 5)", &body)).unwrap();
        let options = StreamOptions { pack: false, ..options(vec![source(&path)], 4) };
        let samples = samples(&options, 6);
        for (index, sample) in samples.iter().enumerate() {
            assert_eq!(sample.tokens, numbers[index % 4 * 5..][..5], "{descr}");
            let place = Place::Token(index as u64 % 4 * 5);
            assert_eq!(sample.documents, [DocumentRef { file: path.clone().into(), place }]);
        }
        let mut rows = Rows::default();
        assert_eq!(rows.push(&samples[1], 4), 4);
        assert_eq!(rows.tokens, numbers[5..9]);
        assert_eq!(rows.targets, numbers[6..10]);
        assert_eq!(rows.positions, [0, 1, 2, 3]);
        assert_eq!(rows.document_ids, [0; 4]);
    }
}

#[test]
fn rows_of_an_array_are_documents_when_packed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.npy");
    std::fs::write(&path, npy("<u2", "(2, 3)", &bin_u16(&[1, 2, 3, 4, 5, 6]))).unwrap();
    let sample = &samples(&options(vec![source(&path)], 4), 1)[0];
    assert_eq!(sample.tokens, [1, 2, 3, 4, 5]);
    assert_eq!(sample.starts, [0, 3]);
    assert_eq!(sample.documents[1].to_string(), format!("{}: token 3", path.display()));
}

#[test]
fn a_flat_file_gives_fixed_windows_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fixed.bin");
    let tokens: Vec<u32> = (0..6 * 9).collect();
    let wide: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    std::fs::write(&path, wide).unwrap();
    let wide = SourceConfig { token_dtype: TokenDtype::U32, ..source(&path) };
    let options = StreamOptions { pack: false, ..options(vec![wide], 8) };
    for (sample, window) in samples(&options, 6).iter().zip(tokens.chunks(9)) {
        assert_eq!(sample.tokens, window);
        assert_eq!(sample.starts, [0]);
    }
}

#[test]
fn documents_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = jsonl(&["first words", ""]);
    lines.extend(b"\n  \n");
    lines.extend(jsonl(&["more words"]));
    std::fs::write(folder.path().join("a.jsonl"), lines).unwrap();
    std::fs::write(folder.path().join("b.txt.zst"), zstd(b"words in a file")).unwrap();
    let options = StreamOptions { repeat: false, ..options(vec![source(folder.path())], 64) };
    let sample = &samples(&options, 1)[0];
    let names: Vec<_> = sample.documents.iter().map(|document| document.to_string()).collect();
    let at = |name: &str| folder.path().join(name).display().to_string();
    assert_eq!(names, [at("a.jsonl: line 1"), at("a.jsonl: line 5"), at("b.txt.zst")]);
}
