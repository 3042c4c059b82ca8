//! Trained models in use: `eval`, `generate` and `convert`.

use serde_json::Value;

use crate::sandbox::Sandbox;

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
    sandbox.succeed(&["train", "run.yaml", source, "data.validation=[]", "validation.enable=false"]);
    let measure = |words: &[&str]| eval(&sandbox, &[&["--checkpoint", "out"], words].concat());
    let wide = measure(&["--data", "wide.bin"]);
    assert_eq!(wide, measure(&["--data", "tokens.bin", "--token-dtype", "u16"]));
    assert_eq!(wide, measure(&["--data", "wide.tokens", "--format", "tokens"]));
    let bodies = measure(&["--data", "bodies.jsonl"]);
    assert_eq!(bodies, measure(&["--data", "texts.jsonl", "--text-key", "text"]));
    assert_ne!(wide, bodies);
}
