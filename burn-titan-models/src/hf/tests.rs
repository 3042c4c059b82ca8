//! Experts, whose matrices are one tensor here, and several there or parts of one.

use std::path::{Path, PathBuf};

use burn_titan_core::checkpoint::{HostDtype, HostTensor};
use burn_titan_core::hf::{HfFolder, HfWriter};
use burn_titan_core::model::HfExtras;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::Qwen3MoeConfig;

const BIAS: &str = "layers.1.feed_forward.router.bias";

fn golden() -> HfFolder {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3_moe_tiny");
    HfFolder::open(&path).unwrap()
}

fn parameters(folder: &HfFolder, config: &Qwen3MoeConfig) -> Result<Vec<HostTensor>, String> {
    let parameters = read_parameters(folder, config).map_err(|error| error.to_string())?;
    parameters.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

fn write(
    path: &Path,
    config: &Qwen3MoeConfig,
    parameters: Vec<HostTensor>,
) -> Result<HfFolder, String> {
    let parameters = parameters.into_iter().map(Ok::<_, ModelFolderError>);
    write_folder(path, config, parameters, &HfExtras::default(), u64::MAX)
        .map_err(|error| error.to_string())?;
    Ok(HfFolder::open(path).unwrap())
}

/// The golden folder with other tensors: those of `add` come in place of those that `drop` says.
fn changed(drop: impl Fn(&str) -> bool, add: Vec<HostTensor>) -> (TempDir, HfFolder) {
    let (folder, out) = (golden(), tempdir().unwrap());
    let path = out.path().join("changed");
    let mut writer = HfWriter::create(&path, folder.config(), u64::MAX).unwrap();
    let kept = folder.names().filter(|name| !drop(name)).map(|name| folder.read(name).unwrap());
    kept.chain(add).for_each(|tensor| writer.write(tensor).unwrap());
    writer.finish().unwrap();
    let changed = HfFolder::open(&path).unwrap();
    (out, changed)
}

/// The tensors of a layer's experts as `transformers` 5 has them in memory: of each expert `[gate; up]`, and down.
fn stacked(folder: &HfFolder, config: &Qwen3MoeConfig, layer: usize) -> Vec<HostTensor> {
    let Qwen3MoeConfig { dim, n_experts, expert_dim, .. } = *config;
    let all = |names: &[&str]| -> Vec<f32> {
        let matrix = |expert, name: &&str| {
            let name = format!("model.layers.{layer}.mlp.experts.{expert}.{name}.weight");
            folder.read(&name).unwrap().to_f32().unwrap()
        };
        (0..n_experts).flat_map(|e| names.iter().flat_map(move |name| matrix(e, name))).collect()
    };
    let tensor = |name: &str, shape: [usize; 2], values: Vec<f32>| {
        let name = format!("model.layers.{layer}.mlp.experts.{name}");
        HostTensor::from_f32(name, &[n_experts, shape[0], shape[1]], &values).unwrap()
    };
    vec![
        tensor("gate_up_proj", [2 * expert_dim, dim], all(&["gate_proj", "up_proj"])),
        tensor("down_proj", [dim, expert_dim], all(&["down_proj"])),
    ]
}

#[test]
fn the_golden_folder_survives_the_way_there_and_back() {
    let (folder, out) = (golden(), tempdir().unwrap());
    let config: Qwen3MoeConfig = read_config(&folder).unwrap();
    assert_eq!((config.n_experts, config.top_k, config.expert_dim), (8, 2, 32));
    assert!(config.renormalise && !config.balanced());
    let ours = parameters(&folder, &config).unwrap();
    let count: usize = ours.iter().map(|p| p.shape().iter().product::<usize>()).sum();
    assert_eq!(count as u64, config.parameter_count());
    // The matrix of expert 5, turned.
    let w2 = ours.iter().find(|p| p.name() == "layers.1.feed_forward.experts.w2").unwrap();
    assert_eq!(w2.shape(), [8, 32, 64]);
    let theirs = folder.read("model.layers.1.mlp.experts.5.down_proj.weight").unwrap();
    let (w2, theirs) = (w2.to_f32().unwrap(), theirs.to_f32().unwrap());
    for (row, column) in [(0, 0), (31, 63), (7, 40)] {
        assert_eq!(w2[(5 * 32 + row) * 64 + column], theirs[column * 32 + row]);
    }
    let again = write(&out.path().join("again"), &config, ours).unwrap();
    assert_eq!(read_config::<Qwen3MoeConfig>(&again).unwrap(), config);
    assert!(again.names().eq(folder.names()));
    for name in folder.names() {
        assert_eq!(again.read(name).unwrap(), folder.read(name).unwrap());
    }
}

#[test]
fn stacked_experts_are_read_too() {
    let folder = golden();
    let config = read_config(&folder).unwrap();
    // Layer 0 has a tensor for each expert, layer 1 one for all.
    let (_out, mixed) =
        changed(|name| name.contains("layers.1.mlp.experts."), stacked(&folder, &config, 1));
    assert_eq!(mixed.names().count(), folder.names().count() - 3 * 8 + 2);
    assert_eq!(parameters(&mixed, &config).unwrap(), parameters(&folder, &config).unwrap());
}

#[test]
fn folders_of_other_experts_are_refused() {
    let folder = golden();
    let config: Qwen3MoeConfig = read_config(&folder).unwrap();
    let refused = |folder: &HfFolder, config: &Qwen3MoeConfig| {
        let message = parameters(folder, config).unwrap_err();
        message.replace(&folder.path().display().to_string(), "FOLDER")
    };
    let fewer = Qwen3MoeConfig { n_experts: 7, ..config.clone() };
    assert_eq!(
        refused(&folder, &fewer),
        "FOLDER: tensor `model.layers.0.mlp.experts.7.down_proj.weight` is no part of a Qwen3 MoE model of this \
         config: use the config.json that belongs to these weights"
    );
    let more = Qwen3MoeConfig { n_experts: 9, ..config.clone() };
    assert!(refused(&folder, &more).contains("tensor `model.layers.0.mlp.gate.weight` has shape"));
    let lacking = changed(|name| name.ends_with("layers.0.mlp.experts.7.up_proj.weight"), vec![]);
    assert!(
        refused(&lacking.1, &config)
            .contains("no tensor `model.layers.0.mlp.experts.7.up_proj.weight`")
    );
    // A tensor for each expert and one for all.
    let both = changed(|_| false, stacked(&folder, &config, 0));
    assert!(
        refused(&both.1, &config)
            .contains("`model.layers.0.mlp.experts.0.down_proj.weight` is no part")
    );
    let narrow = Qwen3MoeConfig { expert_dim: 31, ..config.clone() };
    let all = changed(|name| name.contains("mlp.experts."), {
        (0..2).flat_map(|layer| stacked(&folder, &config, layer)).collect()
    });
    assert_eq!(
        refused(&all.1, &narrow),
        "FOLDER: tensor `model.layers.0.mlp.experts.gate_up_proj` has shape [8, 64, 64], but the config needs \
         [8, 62, 64]: use the config.json that belongs to these weights"
    );
    let name = "model.layers.1.mlp.experts.3.gate_proj.weight";
    let half = HostTensor::from_bytes(name, HostDtype::BF16, &[32, 64], vec![0; 4096]).unwrap();
    let types = changed(|other| other == name, vec![half]);
    assert_eq!(
        refused(&types.1, &config),
        "FOLDER: tensor `model.layers.1.mlp.experts.3.gate_proj.weight` is of BF16, but those of the experts before it \
         are of F32: store all experts in one element type"
    );
}

/// What balances the choice of experts is zeros in a folder; other values are not lost silently.
#[test]
fn numbers_that_balance_are_written_only_if_they_are_zeros() {
    let (folder, out) = (golden(), tempdir().unwrap());
    let plain: Qwen3MoeConfig = read_config(&folder).unwrap();
    let balanced = Qwen3MoeConfig { load_balance_rate: 1e-3, ..plain.clone() };
    let mut ours = parameters(&folder, &balanced).unwrap();
    assert_eq!(ours.len(), parameters(&folder, &plain).unwrap().len() + 2);
    let bias = ours.iter_mut().find(|parameter| parameter.name() == BIAS).unwrap();
    assert_eq!(bias.to_f32().unwrap(), [0.0; 8]);
    let moved = HostTensor::from_f32(BIAS, &[8], &[0.0, 0.0, 1e-3, 0.0, 0.0, -1e-3, 0.0, 0.0]);
    let zeros = std::mem::replace(bias, moved.unwrap());
    assert_eq!(
        write(&out.path().join("moved"), &balanced, ours.clone()).unwrap_err(),
        "parameter `layers.1.feed_forward.router.bias` is not 0, but a Qwen3 MoE model of Hugging Face has no tensor \
         for it, and would choose other experts: train with `model.overrides.load_balance_rate: 0` to write such a \
         folder"
    );
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    *ours.iter_mut().find(|parameter| parameter.name() == BIAS).unwrap() = zeros;
    let again = write(&out.path().join("zeros"), &balanced, ours).unwrap();
    assert_eq!(read_config::<Qwen3MoeConfig>(&again).unwrap(), plain);
    assert!(again.names().eq(folder.names()));
}
