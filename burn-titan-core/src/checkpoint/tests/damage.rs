//! Damaged files are refused by name.

use super::spread::{Spread, save_on};
use super::*;

#[test]
fn flipped_bytes_of_every_file_are_refused_by_name() {
    let (_folder, path) = saved(3);
    refuses_flipped_bytes(&path);
    let folder = tempdir().unwrap();
    let saved = save_on(folder.path(), 3, Spread::Grid, 3).swap_remove(0);
    refuses_flipped_bytes(&saved.unwrap());
}

fn refuses_flipped_bytes(path: &Path) {
    for name in names_below(path) {
        let file = path.join(&name);
        let whole = fs::read(&file).unwrap();
        // All of the index, which is checked by other means than the rest.
        let stride = if name == "index.json" { 1 } else { 13 };
        for position in (0..whole.len()).step_by(stride) {
            let mut altered = whole.clone();
            altered[position] ^= [0x01, 0x20, 0x80][position % 3];
            fs::write(&file, &altered).unwrap();
            let error = load(path).expect_err(&format!("{name}: byte {position}"));
            let message = error.to_string();
            assert!(message.starts_with(&format!("{}: ", file.display())), "{message}");
        }
        fs::write(&file, &whole).unwrap();
        load(path).unwrap();
    }
}

#[test]
fn every_chunk_is_in_one_share() {
    let (_folder, path) = saved(3);
    for name in names_below(&path).iter().filter(|name| *name != "index.json") {
        let file = path.join(name);
        let whole = fs::read(&file).unwrap();
        for position in (0..whole.len()).step_by(40) {
            let mut altered = whole.clone();
            altered[position] ^= 0x10;
            fs::write(&file, &altered).unwrap();
            let checkpoint = open(&path).unwrap();
            for size in [1, 3, 50] {
                let share = |rank: &usize| checkpoint.verify_share(*rank, size).is_err();
                assert_eq!((0..size).filter(share).count(), 1, "{name}: byte {position}");
            }
        }
        fs::write(&file, &whole).unwrap();
    }
}

#[test]
fn every_missing_or_torn_file_is_refused_by_name() {
    let (folder, path) = saved(3);
    save_step(folder.path(), 0, 2).unwrap();
    for name in names_below(&path) {
        let file = path.join(&name);
        let whole = fs::read(&file).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            let message = load(&path).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{}: ", file.display())), "{message}");
            if name != "index.json" {
                let rest = format!(
                    "the file has {length} bytes, but index.json says {}: it is torn; restore it \
                     from a copy, or delete the folder to continue from an older step",
                    whole.len()
                );
                assert_eq!(message, format!("{}: {rest}", file.display()));
            }
        }
        fs::remove_file(&file).unwrap();
        let message = load(&path).unwrap_err().to_string();
        let rest = match name.as_str() {
            "index.json" => "no such file, so the folder is not a complete checkpoint",
            _ => "the file is missing, though index.json lists it",
        };
        assert!(message.starts_with(&format!("{}: {rest}", file.display())), "{message}");
        // The damage is reported, not stepped over.
        assert_eq!(steps(folder.path()), [2]);
        assert_eq!(latest(folder.path()).unwrap_err().to_string(), message);
        assert!(resolve_resume(folder.path(), Resume::Auto).is_err());
        fs::write(&file, &whole).unwrap();
    }
    load(&path).unwrap();
}

#[test]
fn foreign_indices_are_refused() {
    let (_folder, path) = saved(3);
    let index = path.join("index.json");
    let text = fs::read_to_string(&index).unwrap();
    let message = |text: &str| {
        fs::write(&index, text).unwrap();
        open(&path).unwrap_err().to_string()
    };
    let shown = index.display();
    assert_eq!(
        message(&text.replace("\"format_version\": 2", "\"format_version\": 7")),
        format!(
            "{shown}: format version 7, but this program reads versions up to 2: use the program \
             version that wrote it"
        )
    );
    let remedy =
        "restore the file from a copy, or delete the folder to continue from an older step";
    assert_eq!(
        message("step: 3"),
        format!("{shown}: not valid JSON: expected value at line 1 column 1: {remedy}")
    );
    assert_eq!(message("{}"), format!("{shown}: the key `format_version` is missing: {remedy}"));
    for version in ["{\"format_version\": 1}", "{\"format_version\": 2}"] {
        assert!(message(version).contains("not a checkpoint index: missing field"));
    }
}
