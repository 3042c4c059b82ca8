use super::*;
use crate::config::schema::DataConfig;

/// Writes `files` to a fresh folder `D`, reads one pass of the source `D/<name>` and gives the
/// error, with the folder's path written as `D`.
fn failure(name: &str, files: &[(&str, Vec<u8>)], change: fn(&mut StreamOptions)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (file, bytes) in files {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let mut options =
        StreamOptions { repeat: false, ..options(vec![source(folder.path().join(name))], 8) };
    change(&mut options);
    let read = || {
        let mut stream = SampleStream::open(&options, None)?;
        while stream.next_sample()?.is_some() {}
        Ok(())
    };
    let error: super::super::DataError = match read() {
        Ok(()) => panic!("{name} was read"),
        Err(error) => error,
    };
    error.to_string().replace(&folder.path().display().to_string(), "D")
}

fn plain(_: &mut StreamOptions) {}

#[test]
fn paths() {
    let cases: [(&str, &[&str], &str); 6] = [
        (
            "none.jsonl",
            &[],
            "D/none.jsonl: cannot read: No such file or directory (os error 2): check that the \
             path exists and may be read",
        ),
        (
            "folder",
            &["folder/.hidden"],
            "D/folder: the folder holds no data files: put files in it or name another path",
        ),
        (
            "folder",
            &["folder/a.jsonl", "folder/more/b.jsonl"],
            "D/folder/more: not a regular file: only the files directly in a source folder are \
             read, so move it out, or name it as a source of its own",
        ),
        (
            "folder",
            &["folder/a.jsonl", "folder/notes.md"],
            "D/folder/notes.md: cannot tell the format from the name: expected the ending .jsonl, \
             .txt (both also with .gz or .zst), .bin or .npy: rename the file or set the source's \
             `format`",
        ),
        (
            "a.bin.gz",
            &["a.bin.gz"],
            "D/a.bin.gz: files of tokens are memory-mapped and cannot be compressed: decompress it",
        ),
        (
            "folder",
            &["folder/a.jsonl", "folder/b.bin"],
            "D/folder: the folder mixes text with token files (here \"b.bin\"): make each kind a \
             source of its own",
        ),
    ];
    for (name, files, message) in cases {
        let files: Vec<_> = files.iter().map(|file| (*file, Vec::new())).collect();
        assert_eq!(failure(name, &files, plain), message);
    }
}

#[test]
fn damaged_text() {
    let lines = jsonl(&(0..5000).map(|n| format!("line {n}")).collect::<Vec<_>>());
    let torn = |bytes: Vec<u8>| bytes[..bytes.len() - 20].to_vec();
    let error = failure("a.jsonl.gz", &[("a.jsonl.gz", torn(gzip(&lines)))], plain);
    let (start, end) = error.split_once(" after line ").unwrap();
    assert_eq!(start, "D/a.jsonl.gz: the gzip stream is torn or damaged");
    let (line, cause) = end.split_once(' ').unwrap();
    assert!((4000..5000).contains(&line.parse::<u32>().unwrap()), "{error}");
    assert!(cause.ends_with("): fetch or make the file again"), "{error}");

    let error = failure("a.jsonl.zst", &[("a.jsonl.zst", torn(zstd(&lines)))], plain);
    assert!(
        error.starts_with("D/a.jsonl.zst: the zstd stream is torn or damaged after"),
        "{error}"
    );
    assert!(error.ends_with("(incomplete frame): fetch or make the file again"), "{error}");

    let error = failure("a.txt.gz", &[("a.txt.gz", b"not gzip at all".to_vec())], plain);
    assert_eq!(
        error,
        "D/a.txt.gz: the gzip stream is torn or damaged after line 0 (invalid gzip header): fetch \
         or make the file again"
    );
    let error = failure("a.txt", &[("a.txt", b"ab\xff".to_vec())], plain);
    assert_eq!(error, "D/a.txt: not UTF-8 (byte 2 of the text): convert the file to UTF-8");
}

#[test]
fn bad_lines_are_named_by_number() {
    let mut lines = jsonl(&["fine"]);
    lines.extend(b"\n{\"text\": 3}\n");
    assert_eq!(
        failure("a.jsonl", &[("a.jsonl", lines)], plain),
        "D/a.jsonl: line 3: the key \"text\" holds a number, expected a string: set the source's \
         `text_key` to the key that holds the text"
    );
    // Of many bad lines, the first is named, whichever thread meets one first.
    let lines: String = (0..500).map(|n| format!("bad {n}\n")).collect();
    assert_eq!(
        failure("a.jsonl", &[("a.jsonl", lines.into())], plain),
        "D/a.jsonl: line 1, column 1: bad JSON: expected value: each line must be one JSON object"
    );
}

#[test]
fn damaged_tokens() {
    let save =
        "save it by numpy.save as a 1-D or 2-D array of uint16, uint32, int32 or int64".to_owned();
    let array = |cause: &str| format!("D/a.npy: {cause}: {save}");
    let fortran = npy("<u2", "(1,)", &[0; 2]);
    let fortran = String::from_utf8_lossy(&fortran[10..]).replace("False", "True ");
    let mut fortran_file = npy("<u2", "(1,)", &[0; 2])[..10].to_vec();
    fortran_file.extend(fortran.as_bytes());
    let cases: Vec<(&str, Vec<u8>, String)> = vec![
        (
            "a.bin",
            vec![1, 0, 2],
            "D/a.bin: 3 bytes are no whole number of 2-byte tokens: set the source's `token_dtype` \
             to the width the file was written with, or write the file again"
                .into(),
        ),
        (
            "a.npy",
            b"PK".to_vec(),
            array("not a .npy file (it does not begin with \\x93NUMPY)"),
        ),
        ("a.npy", npy("<f4", "(1,)", &[0; 4]), array("the element type \"<f4\" is not supported")),
        ("a.npy", npy(">u2", "(1,)", &[0; 2]), array("the element type \">u2\" is not supported")),
        ("a.npy", fortran_file, array("the array is in Fortran order")),
        ("a.npy", npy("<u2", "()", &[0; 2]), array("the array has 0 dimensions")),
        ("a.npy", npy("<u2", "(1, 1, 1)", &[0; 2]), array("the array has 3 dimensions")),
        (
            "a.npy",
            npy("<u2", "(3, 2)", &[0; 11]),
            array(
                "the header promises an array of shape [3, 2], but the file is cut off: it holds \
                 11 bytes",
            ),
        ),
        (
            "a.npy",
            npy("<u2", "(3,)", &[0; 8]),
            array("the header promises an array of shape [3], but 2 more bytes follow"),
        ),
        (
            "a.npy",
            npy("<i8", "(4611686018427387904, 4)", &[]),
            array(
                "the header promises an array of shape [4611686018427387904, 4], but the file is \
                 cut off: it holds 0 bytes",
            ),
        ),
        (
            "a.npy",
            npy("<i8", "(2,)", &[[1; 8], [0xff; 8]].concat()),
            "D/a.npy: token 0 of the file is 72340172838076673, but the vocabulary has 2048 tokens \
             (0 to 2047): check `token_dtype`, or that the model's `vocab_size` fits the tokenizer \
             that made the file"
                .into(),
        ),
        (
            "a.npy",
            npy("<i4", "(2,)", &[[1, 0, 0, 0], [0xff; 4]].concat()),
            "D/a.npy: token 1 of the file is -1, but the vocabulary has 2048 tokens (0 to 2047): \
             check `token_dtype`, or that the model's `vocab_size` fits the tokenizer that made \
             the file"
                .into(),
        ),
    ];
    for (name, bytes, message) in cases {
        assert_eq!(failure(name, &[(name, bytes)], plain), message);
    }
}

#[test]
fn nothing_to_read_is_an_error_and_no_endless_loop() {
    let none = "a whole pass gave not one token: the documents are empty, so check the file and \
                `text_key`";
    let repeat: fn(&mut StreamOptions) = |options| options.repeat = true;
    for (name, bytes) in [
        ("a.jsonl", Vec::new()),
        ("a.jsonl", jsonl(&["", "", ""])),
        ("a.txt", Vec::new()),
        ("a.txt.gz", gzip(b"")),
        ("a.bin", Vec::new()),
        ("a.npy", npy("<u2", "(0, 5)", &[])),
        ("a.npy", npy("<u2", "(1000000000000000000, 0)", &[])),
    ] {
        for change in [plain, repeat] {
            let files = [(name, bytes.clone())];
            assert_eq!(failure(name, &files, change), format!("D/{name}: {none}"));
        }
    }
    // Shuffled, and bos and eos do not make an empty document one of two tokens.
    let change: fn(&mut StreamOptions) = |options| {
        (options.bos, options.eos, options.shuffle_buffer) = (Some(0), Some(1), Some(2));
    };
    let files = [("a.jsonl", jsonl(&["", "", ""]))];
    assert_eq!(failure("a.jsonl", &files, change), format!("D/a.jsonl: {none}"));
}

#[test]
fn tokenizers_that_do_not_fit() {
    let files = [("a.jsonl", jsonl(&["a"]))];
    assert_eq!(
        failure("a.jsonl", &files, |options| options.tokenizer = None),
        "D/a.jsonl: text needs a tokenizer: set data.tokenizer to a tokenizer.json"
    );
    let error = failure("a.jsonl", &files, |options| options.vocab_size = 2000);
    let (_, message) = error.split_once("tokenizer.json: ").unwrap();
    assert_eq!(
        message,
        "the tokenizer has 2048 tokens, the model only 2000: set the model's `vocab_size` to at \
         least 2048, or use the tokenizer that belongs to the model"
    );
    let data = DataConfig { eos_token: Some("<eos>".into()), ..Default::default() };
    assert_eq!(
        StreamOptions::training(&data, 8, 8, 0).unwrap_err().to_string(),
        "data.eos_token: the token \"<eos>\" is looked up in the tokenizer: set data.tokenizer too"
    );
}

#[test]
fn options_follow_the_config() {
    let mut data = DataConfig {
        train: vec![source("a")],
        validation: vec![source("b")],
        tokenizer: Some(bundled("tokenizer.json")),
        bos_token: Some("<|begin_of_text|>".into()),
        ..Default::default()
    };
    let training = StreamOptions::training(&data, VOCABULARY, 16, 3).unwrap();
    assert_eq!((training.bos, training.eos, training.seed), (Some(0), None, 3));
    assert_eq!(training.shuffle_buffer, Some(10_000));
    let validation = training.validation(&data);
    assert_eq!(validation.sources, data.validation);
    assert_eq!((validation.repeat, validation.shuffle_buffer), (false, None));
    data.shuffle = false;
    let training = StreamOptions::training(&data, VOCABULARY, 16, 3).unwrap();
    assert_eq!(training.shuffle_buffer, None);
}
