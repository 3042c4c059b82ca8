//! `convert` and `eval` on the golden model, `tests/golden/llama_tiny`.

use burn_titan_core::checkpoint::{HostTensor, TensorFile, write_tensor_file};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, copy, repository};

/// A sandbox with the golden model in `hf` and its token ids in `ids.json`.
fn golden() -> Sandbox {
    let sandbox = Sandbox::new();
    copy(&repository().join("tests/golden/llama_tiny"), &sandbox.path("hf"));
    let ids = golden_tensor(&sandbox, "input_ids", Dtype::I64, i64::from_le_bytes);
    let rows: Vec<&[i64]> = ids.chunks_exact(32).collect();
    sandbox.write("ids.json", json!(rows).to_string().as_bytes());
    sandbox
}

/// A tensor of `golden.safetensors`.
fn golden_tensor<T, const WIDTH: usize>(
    sandbox: &Sandbox,
    name: &str,
    dtype: Dtype,
    element: fn([u8; WIDTH]) -> T,
) -> Vec<T> {
    let bytes = sandbox.read("hf/golden.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("the golden file can be read");
    let tensor = file.tensor(name).expect("the golden tensor is there");
    assert_eq!(tensor.dtype(), dtype);
    let (elements, _) = tensor.data().as_chunks::<WIDTH>();
    elements.iter().map(|bytes| element(*bytes)).collect()
}

fn tensors(sandbox: &Sandbox, path: &str) -> TensorFile {
    TensorFile::open(&sandbox.path(path)).unwrap_or_else(|error| panic!("{error}"))
}

fn assert_same_tensors(a: &TensorFile, b: &TensorFile) {
    assert_eq!(a.names().collect::<Vec<_>>(), b.names().collect::<Vec<_>>());
    for name in a.names() {
        assert!(a.view(name).ok() == b.view(name).ok(), "{name} differs");
    }
}

/// What `eval` prints for the golden token ids.
fn eval(sandbox: &Sandbox, source: &str, folder: &str) -> String {
    sandbox.succeed(&["eval", source, folder, "--token-ids", "ids.json"])
}

#[test]
fn there_and_back_is_bitwise_the_same() {
    let sandbox = golden();
    sandbox.succeed(&["convert", "from-hf", "hf", "converted"]);
    sandbox.succeed(&["convert", "to-hf", "converted", "back"]);
    let [original, back] =
        ["hf", "back"].map(|folder| tensors(&sandbox, &format!("{folder}/model.safetensors")));
    assert_eq!(original.names().count(), 21);
    assert_same_tensors(&original, &back);
    // A second time gives the same files, config.json and all.
    sandbox.succeed(&["convert", "from-hf", "back", "again/checkpoint"]);
    sandbox.succeed(&["convert", "to-hf", "again", "back-again/"]);
    for file in ["config.json", "model.safetensors"] {
        let [a, b] = ["back", "back-again"].map(|folder| sandbox.read(&format!("{folder}/{file}")));
        assert!(a == b, "{file} differs");
    }
}

#[test]
fn both_forms_have_the_golden_loss() {
    let sandbox = golden();
    sandbox.succeed(&["convert", "from-hf", "hf", "converted"]);
    let printed = eval(&sandbox, "--hf", "hf");
    assert_eq!(printed, eval(&sandbox, "--checkpoint", "converted"));
    let result: Value = serde_json::from_str(&printed).expect("eval prints JSON");
    let golden: Value =
        serde_json::from_slice(&sandbox.read("hf/golden.json")).expect("golden.json is JSON");
    let number = |value: &Value| value.as_f64().expect("a number");
    let (loss, expected) = (number(&result["loss"]), number(&golden["loss_f64"]));
    println!("loss {loss}, golden {expected}: {:.1e}", (loss - expected).abs());
    assert!((loss - expected).abs() < 1e-6);
    assert!((number(&result["perplexity"]) - loss.exp()).abs() < 1e-9);
    assert_eq!(result["tokens"], 62);
}

#[test]
fn logits_are_the_golden_ones() {
    let sandbox = golden();
    let arguments =
        ["eval", "--hf", "hf", "--token-ids", "ids.json", "--logits", "out.safetensors"];
    sandbox.succeed(&arguments);
    let file = tensors(&sandbox, "out.safetensors");
    assert_eq!(file.names().collect::<Vec<_>>(), ["logits"]);
    let ours = file.view("logits").expect("it is listed").to_tensor();
    assert_eq!(ours.shape(), [2, 32, 256]);
    let expected = golden_tensor(&sandbox, "logits", Dtype::F32, f32::from_le_bytes);
    let ours = ours.to_f32().expect("logits are f32");
    assert_eq!(ours.len(), expected.len());
    let distance = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let largest = distance.fold(0.0_f32, f32::max);
    println!("logits within {largest:.1e}");
    assert!(largest < 2e-5);
}

/// The weights in two files with an index, the head tied to the embedding.
#[test]
fn shards_and_tied_embeddings() {
    let sandbox = golden();
    let config = String::from_utf8(sandbox.read("hf/config.json")).expect("JSON is text");
    let (untied, tied) = ("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert!(config.contains(untied));
    sandbox.write("tied/config.json", config.replace(untied, tied).as_bytes());
    let original = tensors(&sandbox, "hf/model.safetensors");
    let all: Vec<HostTensor> = original
        .names()
        .filter(|name| *name != "lm_head.weight")
        .map(|name| original.view(name).expect("it is listed").to_tensor())
        .collect();
    let mut map = serde_json::Map::new();
    for (number, part) in all.chunks(11).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        write_tensor_file(&sandbox.path(&format!("tied/{file}")), part, &[("format", "pt")])
            .unwrap_or_else(|error| panic!("{error}"));
        map.extend(part.iter().map(|tensor| (tensor.name().into(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    sandbox.write("tied/model.safetensors.index.json", index.to_string().as_bytes());
    sandbox.succeed(&["convert", "from-hf", "tied", "converted"]);
    sandbox.succeed(&["convert", "to-hf", "converted", "back"]);
    let back = tensors(&sandbox, "back/model.safetensors");
    assert_eq!(back.names().count(), 20);
    assert!(all.iter().all(|tensor| {
        back.view(tensor.name())
            .is_ok_and(|view| view.data == tensor.data() && view.shape == tensor.shape())
    }));
    let results = [("--hf", "tied"), ("--checkpoint", "converted"), ("--hf", "back")]
        .map(|(source, folder)| eval(&sandbox, source, folder));
    assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
    assert_ne!(results[0], eval(&sandbox, "--hf", "hf"));
}
