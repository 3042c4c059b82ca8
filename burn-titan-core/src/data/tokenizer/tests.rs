use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::data::DataError;

fn bundled(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(name)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(bundled("tokenizer.json")).unwrap()
}

/// The library's own path, for comparison.
fn slow(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.inner.encode(text, false).unwrap().get_ids().to_vec()
}

/// Streams `ids` and checks that no piece has a character that the whole text does not have.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream();
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(id).unwrap();
    }
    text + &stream.finish().unwrap()
}

proptest! {
    #[test]
    fn any_text_survives_and_both_paths_agree(
        text in "\\PC{0,60}|[\\s\\PC<|>a-z0-9']{0,200}|(?s).{0,50}",
    ) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(&ids, &slow(&tokenizer, &text));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_str());
        prop_assert_eq!(streamed(&tokenizer, &ids), text);
    }

    #[test]
    fn any_tokens_stream_as_they_decode(ids in prop::collection::vec(0_u32..2048, 0..200)) {
        let tokenizer = tokenizer();
        prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
    }

    /// Only the bytes, most of them not UTF-8.
    #[test]
    fn any_bytes_stream_as_they_decode(ids in prop::collection::vec(2_u32..258, 0..100)) {
        let tokenizer = tokenizer();
        prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
    }

    #[test]
    fn altered_files_never_panic(position in 0_usize..120_000, byte: u8) {
        let mut bytes = std::fs::read(bundled("tokenizer.json")).unwrap();
        let position = position % bytes.len();
        bytes[position] = byte;
        if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes, "t.json".into()) {
            let ids = tokenizer.encode("To be, or not to be: that is the question.");
            let _ = ids.and_then(|ids| tokenizer.decode(&ids));
        }
    }
}

#[test]
fn both_paths_agree_on_the_corpus() {
    let tokenizer = tokenizer();
    assert!(tokenizer.byte_level.is_some());
    let corpus = std::fs::read_to_string(bundled("shakespeare/validation.jsonl")).unwrap();
    for text in corpus.lines() {
        assert_eq!(tokenizer.encode(text).unwrap(), slow(&tokenizer, text));
    }
}

#[test]
fn a_stream_holds_back_half_a_character() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("x\u{1f600}").unwrap();
    assert_eq!(ids.len(), 5);
    let mut stream = tokenizer.decode_stream();
    let pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["x", "", "", "", "\u{1f600}"]);
    let mut cut = tokenizer.decode_stream();
    let pieces: Vec<_> = ids[..3].iter().map(|&id| cut.push(id).unwrap()).collect();
    assert_eq!(pieces, ["x", "", ""]);
    assert_eq!(cut.finish().unwrap(), "\u{fffd}");
}

#[test]
fn special_tokens_are_text_in_documents_and_tokens_in_prompts() {
    let tokenizer = tokenizer();
    let text = "a<|end_of_text|>b";
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().all(|&id| id > 1));
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    let prompt = tokenizer.encode_prompt(text).unwrap();
    assert_eq!(prompt.iter().filter(|&&id| id == 1).count(), 1);
    assert_eq!(tokenizer.decode(&prompt).unwrap(), text);
}

#[test]
fn tokens_are_looked_up_by_text() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!(tokenizer.token_id(BEGIN_OF_TEXT).unwrap(), 0);
    assert_eq!(tokenizer.token_id(END_OF_TEXT).unwrap(), 1);
    assert_eq!(
        tokenizer.token_id("<|endoftext|>").unwrap_err().to_string(),
        format!(
            "{}: no token \"<|endoftext|>\" in the vocabulary: did you mean \"<|end_of_text|>\"?",
            bundled("tokenizer.json").display()
        )
    );
}

/// A tokenizer of another kind: whole words, which the fast path does not know.
const WORDS: &str = r#"{
    "version": "1.0", "padding": null, "added_tokens": [], "normalizer": null,
    "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"to": 0, "be": 3, "?": 7}, "unk_token": "?"}
}"#;

#[test]
fn other_tokenizers_work_too_and_lose_nothing() {
    let tokenizer = Tokenizer::from_bytes(WORDS.as_bytes(), "t.json".into()).unwrap();
    assert!(tokenizer.byte_level.is_none());
    assert_eq!(tokenizer.vocab_size(), 8);
    assert_eq!(tokenizer.encode("to be or be").unwrap(), [0, 3, 7, 3]);
    assert_eq!(streamed(&tokenizer, &[0, 3, 3]), "to be be");
    assert_eq!(
        tokenizer.token_id("<s>").unwrap_err().to_string(),
        "t.json: no token \"<s>\" in the vocabulary: it has no special tokens"
    );
}

#[test]
fn files_that_are_no_tokenizers_are_refused() {
    let remedy =
        "export it by the `tokenizers` library, or make one by `burn-titan tokenizer train`";
    let message = |json: &str| {
        Tokenizer::from_bytes(json.as_bytes(), "t.json".into()).unwrap_err().to_string()
    };
    let bpe = |dropout: &str, merge: &str| {
        format!(
            r#"{{"version": "1.0", "added_tokens": [], "model": {{"type": "BPE",
            "dropout": {dropout}, "vocab": {{"a": 0, "b": 1}}, "merges": [{merge}]}}}}"#
        )
    };
    assert!(Tokenizer::from_bytes(bpe("null", "").as_bytes(), "t.json".into()).is_ok());
    assert_eq!(
        message(&bpe("0.5", "")),
        format!(
            "t.json: not a usable tokenizer.json: it drops merges at random (`dropout`), set that \
             to null: {remedy}"
        )
    );
    assert_eq!(
        message(&bpe("null", r#"["a", "b"]"#)),
        format!("t.json: not a usable tokenizer.json: its parts contradict each other: {remedy}")
    );
    assert_eq!(
        message("{"),
        format!(
            "t.json: not a usable tokenizer.json: EOF while parsing an object at line 1 column 1: \
             {remedy}"
        )
    );
    assert_eq!(
        message(
            r#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {},
            "unk_token": "?"}}"#
        ),
        format!("t.json: not a usable tokenizer.json: its vocabulary is empty: {remedy}")
    );
    assert_eq!(
        Tokenizer::from_file("no/such.json").unwrap_err().to_string(),
        "no/such.json: cannot read the tokenizer: No such file or directory (os error 2): check \
         that the path exists and may be read"
    );
}

fn corpus(text: &str) -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (folder.path().join("a.txt"), folder.path().join("t.json"));
    std::fs::write(&input, text).unwrap();
    (folder, input, out)
}

#[test]
fn training_again_gives_the_bundled_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tokenizer.json");
    let trained = train(2048, &[bundled("shakespeare/train.jsonl")], &out).unwrap();
    assert_eq!(trained.vocab_size(), 2048);
    let same = std::fs::read(&out).unwrap() == std::fs::read(bundled("tokenizer.json")).unwrap();
    assert!(same, "data/tokenizer.json is not what `burn-titan tokenizer train` makes");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a partial file was left");
}

#[test]
fn training_is_deterministic_and_lossless() {
    let words: Vec<_> = (0..400).map(|n| format!("w{}x{} \u{e9}{}\n", n % 7, n % 13, n)).collect();
    let (_folder, input, out) = corpus(&words.concat());
    let make = || {
        train(300, std::slice::from_ref(&input), &out).unwrap();
        std::fs::read(&out).unwrap()
    };
    let first = make();
    for _ in 0..5 {
        assert_eq!(make(), first);
    }
    let tokenizer = Tokenizer::from_file(&out).unwrap();
    let text = "\u{1f600}\r\n\n  \t x<|begin_of_text|>12345 don't 'TIS \u{0}\u{feff}e\u{301}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
}

#[test]
fn the_smallest_vocabulary_is_bytes_and_special_tokens() {
    let (_folder, input, out) = corpus("ab");
    let tokenizer = train(258, &[input], &out).unwrap();
    assert_eq!(tokenizer.vocab_size(), 258);
    assert_eq!(tokenizer.encode("ab").unwrap().len(), 2);
}

#[test]
fn training_refuses_what_it_cannot_do() {
    let (folder, input, out) = corpus("aba");
    let message = |result: Result<Tokenizer, DataError>| result.unwrap_err().to_string();
    assert_eq!(
        message(train(257, std::slice::from_ref(&input), &out)),
        "vocab_size 257 is too small: 256 bytes and 2 special tokens need at least 258"
    );
    assert_eq!(
        message(train(300, std::slice::from_ref(&input), &out)),
        "vocab_size 300 cannot be reached: the text has pairs for only 260 tokens: give more text, \
         or ask for at most 260"
    );
    assert!(!out.exists());
    assert_eq!(
        message(train(300, &[], &out)),
        "no input file is given: name at least one JSONL or text file to train on"
    );
    let tokens = folder.path().join("a.bin");
    std::fs::write(&tokens, [0; 4]).unwrap();
    assert_eq!(
        message(train(300, std::slice::from_ref(&tokens), &out)),
        format!(
            "{}: holds token ids, but a tokenizer is trained on text: name a JSONL or text file",
            tokens.display()
        )
    );
    let lines = folder.path().join("a.jsonl");
    std::fs::write(&lines, "{\"text\": \"a\"}\n{}\n").unwrap();
    let error = message(train(258, &[lines], &out));
    assert!(error.contains("a.jsonl: line 2: no key \"text\""), "{error}");
    let nowhere = folder.path().join("none/t.json");
    assert_eq!(
        message(train(258, &[input], &nowhere)),
        format!(
            "{}: cannot write the tokenizer: No such file or directory (os error 2): check that \
             the folder exists and may be written",
            nowhere.display()
        )
    );
}
