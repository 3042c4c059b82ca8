//! Whole folders, there and back.

use std::collections::BTreeSet;
use std::path::PathBuf;

use burn_titan_core::checkpoint::{HostDtype, HostTensor};
use burn_titan_core::hf::HfFolder;
use burn_titan_core::model::HfExtras;
use tempfile::tempdir;

use crate::LlamaConfig;
use crate::config::ModelConfig;
use crate::hf::{HuggingFace, ModelFolderError, read_parameters, write_folder};

fn read_config(folder: &HfFolder) -> Result<LlamaConfig, ModelFolderError> {
    crate::hf::read_config(folder)
}

fn golden() -> HfFolder {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama_tiny");
    HfFolder::open(&path).unwrap()
}

#[test]
fn the_golden_folder_is_read() {
    let folder = golden();
    let config = read_config(&folder).unwrap();
    assert_eq!((config.dim, config.n_layers, config.n_kv_heads), (64, 2, 2));
    assert_eq!((config.rope_theta, config.rope_scaling), (500_000.0, None));
    let parameters: Vec<HostTensor> =
        read_parameters(&folder, &config).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(parameters.len(), 2 * 9 + 3);
    let count: usize = parameters.iter().map(|p| p.shape().iter().product::<usize>()).sum();
    assert_eq!(count as u64, config.parameter_count());
    let theirs = folder.read("model.layers.1.self_attn.k_proj.weight").unwrap();
    let ours = parameters.iter().find(|p| p.name() == "layers.1.attention.wk.weight").unwrap();
    assert_eq!((theirs.shape(), ours.shape()), (&[32, 64][..], &[64, 32][..]));
    let (theirs, ours) = (theirs.to_f32().unwrap(), ours.to_f32().unwrap());
    for (row, column) in [(0, 0), (31, 63), (5, 40)] {
        assert_eq!(theirs[row * 64 + column], ours[column * 32 + row]);
    }
}

#[test]
fn a_folder_survives_the_way_there_and_back() {
    let folder = golden();
    let config = read_config(&folder).unwrap();
    let out = tempdir().unwrap();
    for (name, limit) in [("one", u64::MAX), ("many", 100_000)] {
        let path = out.path().join(name);
        let parameters = read_parameters(&folder, &config).unwrap();
        let files: [(&str, &[u8]); 1] = [("tokenizer.json", b"{}")];
        let extras = HfExtras { bos_token_id: Some(3), eos_token_id: None, files: &files };
        write_folder(&path, &config, parameters, &extras, limit).unwrap();
        let again = HfFolder::open(&path).unwrap();
        assert_eq!(read_config(&again).unwrap(), config);
        assert_eq!(again.config()["bos_token_id"], 3);
        assert!(again.config()["eos_token_id"].is_null());
        assert!(again.names().eq(folder.names()));
        for name in folder.names() {
            assert_eq!(again.read(name).unwrap(), folder.read(name).unwrap());
        }
        assert!(path.join("tokenizer.json").exists());
    }
}

#[test]
fn a_tied_model_has_no_head() {
    let folder = golden();
    let config = LlamaConfig { tie_embeddings: true, ..read_config(&folder).unwrap() };
    let out = tempdir().unwrap();
    let path = out.path().join("tied");
    let parameters = read_parameters(&folder, &config).unwrap();
    write_folder(&path, &config, parameters, &HfExtras::default(), u64::MAX).unwrap();
    let again = HfFolder::open(&path).unwrap();
    assert!(!again.contains("lm_head.weight"));
    assert!(read_config(&again).unwrap().tie_embeddings);
}

#[test]
fn weights_of_another_config_are_refused() {
    let folder = golden();
    let config = read_config(&folder).unwrap();
    let shown = folder.path().display();
    let error = |config: &LlamaConfig| -> String {
        match read_parameters(&folder, config) {
            Err(error) => error.to_string(),
            Ok(mut parameters) => parameters.find_map(Result::err).unwrap().to_string(),
        }
    };
    let wider = LlamaConfig { ffn_dim: 130, ..config.clone() };
    assert_eq!(
        error(&wider),
        format!(
            "{shown}: tensor `model.layers.0.mlp.gate_proj.weight` has shape [128, 64], but the \
             config needs [130, 64]: use the config.json that belongs to these weights"
        )
    );
    let shallower = LlamaConfig { n_layers: 1, ..config.clone() };
    assert_eq!(
        error(&shallower),
        format!(
            "{shown}: tensor `model.layers.1.input_layernorm.weight` is no part of a Llama model of \
             this config: use the config.json that belongs to these weights"
        )
    );
    let deeper = LlamaConfig { n_layers: 3, ..config };
    assert!(error(&deeper).contains("no tensor `model.layers.2.input_layernorm.weight`"));
}

#[test]
fn incomplete_models_are_not_written() {
    let folder = golden();
    let config = read_config(&folder).unwrap();
    let out = tempdir().unwrap();
    let path = out.path().join("out");
    let write = |parameters: Vec<HostTensor>| {
        let parameters = parameters.into_iter().map(Ok::<_, ModelFolderError>);
        write_folder(&path, &config, parameters, &HfExtras::default(), u64::MAX)
            .unwrap_err()
            .to_string()
    };
    let mut parameters: Vec<HostTensor> =
        read_parameters(&folder, &config).unwrap().collect::<Result<_, _>>().unwrap();
    let head = parameters.pop().unwrap();
    assert_eq!(
        write(parameters.clone()),
        "parameter `output.weight` of the Llama model is missing: give all of them"
    );
    assert!(write(vec![]).ends_with("of the Llama model is missing: give all of them"));
    let turned = head.transposed().unwrap();
    assert!(write(vec![turned]).contains("tensor `output.weight` has shape [256, 64], but"));
    let unknown = HostTensor::from_bytes("bias", HostDtype::F32, &[0], vec![]).unwrap();
    assert!(write(vec![unknown]).starts_with("`bias` is not the name of a parameter"));
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn every_parameter_has_a_name_of_its_own() {
    let config = LlamaConfig { n_layers: 12, ..LlamaConfig::flavor("debug").unwrap() };
    let shapes = config.parameter_shapes();
    assert_eq!(shapes.len(), 3 + 12 * 9);
    let name = |name: &str| LlamaConfig::NAMES.hf_names(name, &[]);
    let names: BTreeSet<String> = shapes.iter().flat_map(|(ours, _)| name(ours).unwrap()).collect();
    assert_eq!(names.len(), shapes.len());
    assert_eq!(
        name("layers.11.feed_forward.w3.weight").unwrap(),
        ["model.layers.11.mlp.up_proj.weight"]
    );
    assert_eq!(
        name("layers.0.ffn_norm.weight").unwrap(),
        ["model.layers.0.post_attention_layernorm.weight"]
    );
    for wrong in ["layers.x.ffn_norm.weight", "layers.01.ffn_norm.weight", "layers.1", "norm", ""] {
        assert_eq!(name(wrong), None, "{wrong}");
    }
}

#[test]
fn shapes_add_up_to_the_count() {
    for flavor in LlamaConfig::FLAVORS {
        let config = LlamaConfig::flavor(flavor).unwrap();
        let sum: usize =
            config.parameter_shapes().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        assert_eq!(sum as u64, config.parameter_count(), "{flavor}");
    }
}
