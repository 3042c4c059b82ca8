//! Files that a config names, and the file of the config itself.

use std::fs;
use std::path::Path;

use crate::config::{Checks, Draft, load};

/// The problems of a file, with the folder shown as `DIR`.
fn problems(path: &Path, folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    match load(path, &[]) {
        Ok(_) => vec![],
        Err(errors) => {
            errors.problems().iter().map(|p| p.to_string().replace(folder, "DIR")).collect()
        }
    }
}

#[test]
fn config_files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("latin1.yaml"), b"# one\nrun: {name: caf\xe9}\n").unwrap();
    fs::write(folder.join("huge.yaml"), "#\n".repeat(600_000)).unwrap();
    for (name, expected) in [
        (".", "DIR/.: is a folder; a config is one YAML file; name one YAML file in it"),
        ("hgue.yaml", "DIR/hgue.yaml: no such file; did you mean `DIR/huge.yaml`?"),
        ("latin.yaml", "DIR/latin.yaml: no such file; did you mean `DIR/latin1.yaml`?"),
        ("zebra", "DIR/zebra: no such file"),
        ("huge.yaml", "DIR/huge.yaml: is larger than 1 MiB, which no config is"),
        (
            "latin1.yaml",
            "DIR/latin1.yaml: line 2 is not UTF-8 text (byte 21 of the file); save the file as UTF-8",
        ),
    ] {
        assert_eq!(problems(&folder.join(name), folder), [expected], "{name}");
    }
}

#[test]
fn named_files_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("shakespeare")).unwrap();
    fs::write(folder.join("shakespeare/train.jsonl"), "").unwrap();
    fs::write(folder.join("tokens.bin"), "").unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let text = format!(
        "model: {{initial_hf: {}}}\ndata:\n  train:\n    - path: {}\n    - path: {}\n    - path: {}\n  \
         tokenizer: {}\n",
        path("tokens.bin"),
        path("shakspeare/train.jsonl"),
        path("shakespeare"),
        path("zebra/x.bin"),
        path("shakespeare"),
    );
    let config = folder.join("a.yaml");
    fs::write(&config, &text).unwrap();
    assert_eq!(
        problems(&config, folder),
        [
            "DIR/a.yaml:1:9: `DIR/tokens.bin` is a file, expected a folder",
            "DIR/a.yaml:4:7: `DIR/shakspeare/train.jsonl` does not exist; \
             did you mean `DIR/shakespeare/train.jsonl`?",
            "DIR/a.yaml:6:7: `DIR/zebra/x.bin` does not exist",
            "DIR/a.yaml:7:3: `DIR/shakespeare` is a folder, expected a file",
        ]
    );
    let draft = Draft::read(&config, &[], Checks { files: false, ranks: None });
    assert!(draft.finish().is_ok());

    fs::write(&config, format!("data: {{train: [{{path: {}}}]}}\n", path("tokens.bin"))).unwrap();
    assert_eq!(problems(&config, folder), [""; 0]);
}

#[test]
fn relative_paths_start_at_the_working_directory() {
    let text = "data: {train: [{path: zebra/none.bin}]}";
    let errors = crate::config::parse("a.yaml", text, &[]).unwrap_err();
    let here = std::env::current_dir().unwrap();
    let expected = format!(
        "a.yaml:1:17: `zebra/none.bin` does not exist; relative paths start at the working \
         directory, `{}`",
        here.display()
    );
    assert_eq!(errors.problems()[0].to_string(), expected);
}
