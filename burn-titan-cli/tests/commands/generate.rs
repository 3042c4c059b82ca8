//! `generate`: the same text for the same seed, in whole characters, as it comes.

use std::io::Read;
use std::process::Stdio;

use crate::sandbox::Sandbox;

#[test]
fn the_same_seed_gives_the_same_text() {
    let sandbox = Sandbox::trained();
    let with = |further: &[&str]| {
        let common = ["generate", "--checkpoint", "out", "--prompt", "To be, or"];
        sandbox.succeed(&[&common[..], further].concat())
    };
    let best = with(&["--temperature", "0", "--max-tokens", "24"]);
    assert!(best.starts_with("To be, or") && best.ends_with('\n') && best.len() > 20, "{best}");
    assert_eq!(best, with(&["--temperature", "0", "--max-tokens", "24", "--seed", "7"]));
    assert_eq!(best, with(&["--temperature", "2", "--max-tokens", "24", "--top-k", "1"]));
    let one = with(&["--temperature", "1", "--seed", "1"]);
    assert_eq!(one, with(&["--temperature", "1", "--seed", "1"]));
    assert_ne!(one, with(&["--temperature", "1", "--seed", "2"]));
    assert_eq!(with(&["--max-tokens", "0"]), "To be, or\n");
}

/// A nearly untrained model draws single bytes of characters, too; what arrives is text all the same.
#[test]
fn text_streams_in_whole_characters() {
    let sandbox = Sandbox::trained();
    let prompt = "\u{dc}ber \u{2603}\u{1f600}";
    let mut child = sandbox
        .command(&["generate", "--checkpoint", "out", "--prompt", prompt, "--temperature", "3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut stdout = child.stdout.take().expect("it is piped");
    let (mut text, mut pieces) = (String::new(), 0);
    let mut buffer = [0; 1 << 16];
    loop {
        let read = stdout.read(&mut buffer).expect("the pipe can be read");
        if read == 0 {
            break;
        }
        // What one read gives is whole writes, as they are small.
        text += std::str::from_utf8(&buffer[..read]).expect("a piece is whole characters");
        pieces += 1;
    }
    assert!(child.wait().expect("the binary ends").success());
    assert!(text.starts_with(prompt) && text.chars().count() > 100, "{text}");
    assert!(pieces > 1, "the text came at once");
}

#[test]
fn a_hugging_face_folder_brings_its_tokenizer() {
    let sandbox = Sandbox::trained();
    sandbox.succeed(&["convert", "to-hf", "out", "hf"]);
    assert_eq!(sandbox.read("hf/tokenizer.json"), sandbox.read("tokenizer.json"));
    std::fs::remove_file(sandbox.path("tokenizer.json")).expect("it is there");
    let text = ["--prompt", "To be", "--temperature", "0", "--max-tokens", "5"];
    let from_hf = sandbox.succeed(&[&["generate", "--hf", "hf"], &text[..]].concat());
    assert!(from_hf.starts_with("To be"), "{from_hf}");
    let data = ["--data", "data.jsonl"];
    let printed = sandbox.succeed(&[&["eval", "--hf", "hf"], &data[..]].concat());
    assert!(printed.starts_with("{\"loss\":"), "{printed}");
}
