//! Trained models in use: `eval`, `generate` and `convert`.

use std::fs;

use burn_titan_core::checkpoint::{HostTensor, TensorFile, write_tensor_file};
use serde_json::Value;

use crate::sandbox::{Sandbox, copy, repository};

/// What `eval` prints.
fn eval(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    let printed = sandbox.succeed(&[&["eval"], arguments].concat());
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"))
}

/// A file is read as the run read its own, unless an option says otherwise.
#[test]
fn eval_reads_a_file_as_the_run_did() {
    let sandbox = Sandbox::new();
    let wide: Vec<u8> =
        sandbox.read("tokens.bin").chunks_exact(2).flat_map(|t| [t[0], t[1], 0, 0]).collect();
    sandbox.write("wide.bin", &wide);
    sandbox.write("wide.tokens", &wide);
    let texts: Vec<String> = (0..20).map(|n| format!("{{\"body\": \"Text {n}.\"}}\n")).collect();
    sandbox.write("bodies.jsonl", texts.concat().as_bytes());
    sandbox.write("texts.jsonl", texts.concat().replace("body", "text").as_bytes());
    let source = "data.train=[{path: wide.bin, token_dtype: u32, text_key: body}]";
    sandbox.succeed(&[
        "train",
        "run.yaml",
        source,
        "data.validation=[]",
        "validation.enable=false",
    ]);
    let measure = |words: &[&str]| eval(&sandbox, &[&["--checkpoint", "out"], words].concat());
    let wide = measure(&["--data", "wide.bin"]);
    assert_eq!(wide, measure(&["--data", "tokens.bin", "--token-dtype", "u16"]));
    assert_eq!(wide, measure(&["--data", "wide.tokens", "--format", "tokens"]));
    let bodies = measure(&["--data", "bodies.jsonl"]);
    assert_eq!(bodies, measure(&["--data", "texts.jsonl", "--text-key", "text"]));
    assert_ne!(wide, bodies);
}

/// A checkpoint has all that it takes to use the model: it can be carried away from its run.
#[test]
fn a_checkpoint_brings_its_own_tokenizer() {
    let sandbox = Sandbox::trained();
    let own = sandbox.read("tokenizer.json");
    let before = eval(&sandbox, &["--checkpoint", "out", "--data", "data.jsonl"]);
    sandbox.write("tokenizer.json", b"{}");
    assert_eq!(before, eval(&sandbox, &["--checkpoint", "out", "--data", "data.jsonl"]));
    fs::remove_file(sandbox.path("tokenizer.json")).expect("the file is there");
    fs::rename(sandbox.path("out/checkpoint/step-00000004"), sandbox.path("carried"))
        .expect("the folder can be renamed");
    assert_eq!(before, eval(&sandbox, &["--checkpoint", "carried", "--data", "data.jsonl"]));
    let words = ["--prompt", "To be", "--max-tokens", "3", "--temperature", "0"];
    let text = sandbox.succeed(&[&["generate", "--checkpoint", "carried"][..], &words].concat());
    sandbox.succeed(&["convert", "to-hf", "carried", "hf"]);
    assert_eq!(sandbox.read("hf/tokenizer.json"), own);
    let config: Value = serde_json::from_slice(&sandbox.read("hf/config.json")).expect("JSON");
    assert_eq!(
        [config["bos_token_id"].as_u64(), config["eos_token_id"].as_u64()],
        [Some(0), Some(1)]
    );
    sandbox.succeed(&["convert", "from-hf", "hf", "back"]);
    assert_eq!(sandbox.read("back/step-00000000/tokenizer.json"), own);
    fs::remove_dir_all(sandbox.path("hf")).expect("the folder is there");
    sandbox.succeed(&["convert", "to-hf", "back", "hf"]);
    assert_eq!(sandbox.read("hf/tokenizer.json"), own);
    let model = |folder: &str| sandbox.read(&format!("{folder}/model.safetensors"));
    assert!(model("back/step-00000000") == model("carried"), "the weights went there and back");
    assert!(text.starts_with("To be"), "{text}");
    sandbox.write("other.json", b"another one");
    sandbox.succeed(&["convert", "to-hf", "back", "other", "--tokenizer", "other.json"]);
    assert_eq!(sandbox.read("other/tokenizer.json"), b"another one");
}

/// The logits of an evaluation give its loss, and nothing of the padding is among them.
#[test]
fn logits_are_those_of_the_loss() {
    let sandbox = Sandbox::trained();
    // Not packed, 3 documents in batches of 2: the fourth row is padding.
    let lines: String = (1..4).map(|n| format!("{{\"text\": \"Line {n}.\"}}\n")).collect();
    sandbox.write("three.jsonl", lines.as_bytes());
    sandbox.succeed(&["train", "run.yaml", "data.pack=false", "run.output_dir=unpacked"]);
    let words = ["--checkpoint", "unpacked", "--data", "three.jsonl"];
    let plain = eval(&sandbox, &words);
    let with_logits = eval(&sandbox, &[&words[..], &["--logits", "logits.safetensors"]].concat());
    assert_eq!(plain["tokens"], with_logits["tokens"]);
    let loss = |result: &Value| result["loss"].as_f64().expect("a loss");
    let (a, b) = (loss(&plain), loss(&with_logits));
    assert!((a - b).abs() < 1e-6 * a, "{a} and {b}");
    let shape = |name: &str| {
        let file = TensorFile::open(&sandbox.path("logits.safetensors")).expect("a tensor file");
        file.view(name).map(|view| view.shape.to_vec()).map_err(|error| error.to_string())
    };
    assert_eq!(shape("logits"), Ok(vec![3, 32, 2048]));
    sandbox.write("ids.json", b"[[1, 2, 3], [7], [5, 4]]");
    let words = ["--checkpoint", "unpacked", "--token-ids", "ids.json"];
    let a = loss(&eval(&sandbox, &words));
    let b = loss(&eval(&sandbox, &[&words[..], &["--logits", "logits.safetensors"]].concat()));
    assert!((a - b).abs() < 1e-6 * a, "{a} and {b}");
    let shapes = ["logits.0", "logits.1", "logits.2"].map(|name| shape(name).expect("a tensor"));
    assert_eq!(shapes, [[3, 2048], [1, 2048], [2, 2048]]);
}

/// The name of a folder goes into no file.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_is_converted_whatever_its_name() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::new();
    let name = std::ffi::OsStr::from_bytes(b"hf-\xff");
    let folder = sandbox.path("").join(name);
    copy(&repository().join("tests/golden/llama_tiny"), &folder);
    copy(&sandbox.path("tokenizer.json"), &folder.join("tokenizer.json"));
    let mut command = sandbox.command(&["convert", "from-hf"]);
    let output = command.arg(name).arg("out").output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(sandbox.read("out/step-00000000/tokenizer.json"), sandbox.read("tokenizer.json"));
}

/// A conversion that fails leaves nothing that is in the way of the next.
#[test]
fn a_failed_conversion_leaves_nothing() {
    let sandbox = Sandbox::new();
    copy(&repository().join("tests/golden/llama_tiny"), &sandbox.path("hf"));
    let path = sandbox.path("hf/model.safetensors");
    let whole = sandbox.read("hf/model.safetensors");
    let tensors: Vec<HostTensor> = {
        let file = TensorFile::open(&path).expect("a tensor file");
        let last = file.names().last().expect("a tensor").to_string();
        let views = file.names().filter(|name| **name != last);
        views.map(|name| file.view(name).expect("a tensor").to_tensor()).collect()
    };
    write_tensor_file(&path, &tensors, &[]).expect("the file can be written");
    assert_eq!(sandbox.run(&["convert", "from-hf", "hf", "out"]).code, Some(2));
    assert!(!sandbox.path("out").exists());
    sandbox.write("hf/model.safetensors", &whole);
    sandbox.succeed(&["convert", "from-hf", "hf", "out"]);
}
