//! Broken input and the exact messages it gets, from the tables in `broken/`.
//!
//! A case begins with `---- ` and its name. Lines with `< ` prepare its sandbox (see [`prepare`]), the
//! line with `$ ` is the command, all further lines are what it must print to standard error, from the
//! first line that begins with `error`, with `HERE` for the sandbox and `CHECKSUM` for every checksum,
//! for those of trained weights are not the same on every machine. Every command must end with the exit
//! code 2.

use std::fs;
use std::io::Write;

use crate::sandbox::{Sandbox, copy, repository};

/// Runs the cases of a table and returns their number.
fn run_table(table: &str) -> usize {
    let cases: Vec<&str> = table.split("---- ").skip(1).collect();
    let failures: Vec<String> = cases.iter().filter_map(|case| failure(case)).collect();
    assert!(failures.is_empty(), "{} of the cases:\n{}", failures.len(), failures.join("\n"));
    cases.len()
}

/// What a case printed, if it is not what it should have.
fn failure(case: &str) -> Option<String> {
    let mut lines = case.lines();
    let name = lines.next().unwrap_or_default();
    let setup: Vec<Vec<String>> =
        case.lines().filter_map(|line| line.strip_prefix("< ")).map(words).collect();
    let trained = setup.iter().any(|step| step[0] == "trained");
    let sandbox = if trained { Sandbox::trained() } else { Sandbox::new() };
    setup.iter().for_each(|step| prepare(&sandbox, step));
    let expected: Vec<&str> = lines.skip_while(|line| !line.starts_with("$ ")).collect();
    let (command, expected) = expected.split_first().unwrap_or_else(|| panic!("{name}: no `$ `"));
    let arguments = words(&command[2..]);
    let ended = sandbox.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let stderr = without_checksums(&ended.stderr.replace(&sandbox.here(), "HERE"));
    let printed: Vec<&str> =
        stderr.trim_end().lines().skip_while(|line| !line.starts_with("error")).collect();
    let as_expected = ended.code == Some(2) && printed == expected;
    (!as_expected).then(|| {
        format!("---- {name}: exit code {:?}\n{command}\n{}", ended.code, printed.join("\n"))
    })
}

/// `CHECKSUM` in place of every word of 16 hexadecimal digits.
fn without_checksums(text: &str) -> String {
    let is_checksum = |word: &str| {
        let digits = word.trim_end_matches([',', ':']);
        digits.len() == 16 && digits.chars().all(|c| c.is_ascii_hexdigit())
    };
    let shown = |word: &str| match is_checksum(word) {
        true => format!("CHECKSUM{}", &word[16..]),
        false => word.to_owned(),
    };
    text.split(' ').map(shown).collect::<Vec<_>>().join(" ")
}

/// Splits at spaces, but not inside of single quotes, which are dropped.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("there is a word").push(c),
        }
    }
    words
}

/// Changes the sandbox by one line of a table.
fn prepare(sandbox: &Sandbox, step: &[String]) {
    let step: Vec<&str> = step.iter().map(String::as_str).collect();
    match step[..] {
        // `out` is there already.
        ["trained"] => {}
        ["hf"] => copy(&repository().join("tests/golden/llama_tiny"), &sandbox.path("hf")),
        ["write", file, text] => sandbox.write(file, &unescaped(text)),
        ["replace", file, old, new] => {
            let text = String::from_utf8(sandbox.read(file)).expect("the file is text");
            assert!(text.contains(old), "{file} does not contain {old}");
            sandbox.write(file, text.replace(old, new).as_bytes());
        }
        ["cut", file, bytes] => {
            let contents = sandbox.read(file);
            let bytes: usize = bytes.parse().expect("a number of bytes");
            sandbox.write(file, &contents[..contents.len() - bytes]);
        }
        ["flip", file, position] => {
            let mut contents = sandbox.read(file);
            contents[position.parse::<usize>().expect("a position")] ^= 0xff;
            sandbox.write(file, &contents);
        }
        ["gzip", file] => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(&sandbox.read(file)).expect("memory can be written");
            let packed = encoder.finish().expect("memory can be written");
            sandbox.write(&format!("{file}.gz"), &packed);
        }
        ["zstd", file] => {
            let packed = zstd::encode_all(&sandbox.read(file)[..], 0).expect("memory can be read");
            sandbox.write(&format!("{file}.zst"), &packed);
        }
        ["remove", path] => {
            let path = sandbox.path(path);
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        ["move", from, to] => {
            fs::rename(sandbox.path(from), sandbox.path(to)).expect("the path can be renamed");
        }
        ["run", ref arguments @ ..] => {
            sandbox.succeed(arguments);
        }
        ["folder", path] => {
            fs::create_dir_all(sandbox.path(path)).expect("the folder can be made");
        }
        ref other => panic!("no such step: {other:?}"),
    }
}

/// `\n` and `\xHH` as the bytes that they stand for.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.as_bytes());
        rest = match after.strip_prefix('x') {
            Some(hex) => {
                bytes.push(u8::from_str_radix(&hex[..2], 16).expect("two hexadecimal digits"));
                &hex[2..]
            }
            None => {
                assert!(after.starts_with('n'), "only \\n and \\xHH are known");
                bytes.push(b'\n');
                &after[1..]
            }
        };
    }
    bytes.extend(rest.as_bytes());
    bytes
}

#[test]
fn configs() {
    assert_eq!(run_table(include_str!("broken/configs.txt")), 33);
}

#[test]
fn data() {
    assert_eq!(run_table(include_str!("broken/data.txt")), 32);
}

#[test]
fn tokenizers() {
    assert_eq!(run_table(include_str!("broken/tokenizers.txt")), 15);
}

#[test]
fn checkpoints() {
    assert_eq!(run_table(include_str!("broken/checkpoints.txt")), 28);
}

#[test]
fn hugging_face_folders() {
    assert_eq!(run_table(include_str!("broken/hugging_face.txt")), 30);
}

#[test]
fn commands() {
    assert_eq!(run_table(include_str!("broken/commands.txt")), 39);
}
