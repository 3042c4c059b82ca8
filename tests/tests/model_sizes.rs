//! Every published size is built without its weights.

use std::time::{Duration, Instant};

use burn_titan_core::metrics::memory_use;
use burn_titan_core::model::{Model, ModelFamily};
use burn_titan_models::hf::HuggingFace;
use burn_titan_models::{
    DeepSeekV3, DeepSeekV3Config, Llama3, LlamaConfig, Qwen3Moe, Qwen3MoeConfig,
};
use serde_json::{Map, json};

const PUBLISHED: [(&str, u64); 6] = [
    ("debug", 6_163_712),
    ("1b", 1_235_814_400),
    ("3b", 3_212_749_824),
    ("8b", 8_030_261_248),
    ("70b", 70_553_706_496),
    ("405b", 405_853_388_800),
];

/// With experts: all parameters, as the safetensors of the published models count them, and those that a token meets,
/// which are published as 3.3 and 22 billion.
const WITH_EXPERTS: [(&str, u64, f64); 3] = [
    ("debug", 17_580_080, 6_963_200.0),
    ("30b-a3b", 30_532_122_624, 3_353_032_704.0),
    ("235b-a22b", 235_093_634_560, 22_190_763_520.0),
];

/// DeepSeek-V2-Lite, V2 and V3, the last without the module that predicts a second token. Those that a token meets are
/// published as 2.4 (which leaves the embedding out), 21 and 37 billion.
const DEEPSEEK: [(&str, u64, f64); 4] = [
    ("debug", 11_581_672, 5_683_392.0),
    ("16b", 15_706_484_224, 2_661_150_208.0),
    ("236b", 235_741_434_880, 21_375_800_320.0),
    ("671b", 671_026_419_200, 37_552_282_624.0),
];

fn build(flavor: &str, tied: Option<bool>) -> Model {
    let family = Llama3::default();
    let overrides = tied.map(|tied| ("tie_embeddings".to_string(), json!(tied)));
    let config = family.resolve(flavor, &Map::from_iter(overrides)).unwrap();
    family.build(&config, "fused").unwrap()
}

// One test, so that no other one's memory or time is counted in.
#[test]
fn every_flavor_has_its_published_size_and_the_largest_costs_nothing() {
    let before = memory_use();
    let start = Instant::now();
    let largest = build("405b", None);
    let count = largest.parameter_count();
    let elapsed = start.elapsed();
    assert_eq!(count, 405_853_388_800);
    assert!(elapsed < Duration::from_secs(1), "405b was built and counted in {elapsed:?}");
    println!("405b: {elapsed:?}");
    if let (Some(before), Some(after)) = (before, memory_use()) {
        let grown = after.peak_bytes.saturating_sub(before.current_bytes);
        println!("405b: {} KiB", grown / 1024);
        assert!(grown < 50_000_000, "405b took {grown} bytes");
    }

    let flavors: Vec<&str> = PUBLISHED.iter().map(|(flavor, _)| *flavor).collect();
    assert_eq!(Llama3::default().flavors(), flavors);
    for (flavor, count) in PUBLISHED {
        assert_eq!(build(flavor, None).parameter_count(), count, "{flavor}");
        for tied in [false, true] {
            same_names_and_shapes(flavor, tied);
        }
    }
    models_with_experts();
    models_of_deepseek();
}

fn models_with_experts() {
    let family = Qwen3Moe::default();
    assert_eq!(family.flavors(), WITH_EXPERTS.map(|(flavor, ..)| flavor));
    for (flavor, count, active) in WITH_EXPERTS {
        let config = family.resolve(flavor, &Map::new()).unwrap();
        let model = family.build(&config, "fused").unwrap();
        assert_eq!(model.parameter_count(), count, "{flavor}");
        let met: f64 = model.units.iter().map(|unit| model.active_elements(&**unit)).sum();
        assert_eq!(met, active, "{flavor}");
        let config: Qwen3MoeConfig = serde_json::from_value(config).unwrap();
        assert_eq!(config.parameter_count(), count, "{flavor}");
        let shapes = config.parameter_shapes();
        let names = shapes.iter().map(|(name, shape)| Qwen3MoeConfig::NAMES.hf_names(name, shape));
        let names: Vec<String> = names.flat_map(|names| names.expect("a place")).collect();
        let block = 6 + 2 + 1 + 3 * config.n_experts;
        assert_eq!(names.len(), 3 + config.n_layers * block, "{flavor}");
    }
}

fn models_of_deepseek() {
    let family = DeepSeekV3::default();
    assert_eq!(family.flavors(), DEEPSEEK.map(|(flavor, ..)| flavor));
    for (flavor, count, active) in DEEPSEEK {
        let config = family.resolve(flavor, &Map::new()).unwrap();
        let model = family.build(&config, "fused").unwrap();
        assert_eq!(model.parameter_count(), count, "{flavor}");
        let met: f64 = model.units.iter().map(|unit| model.active_elements(&**unit)).sum();
        assert_eq!(met, active, "{flavor}");
        let config: DeepSeekV3Config = serde_json::from_value(config).unwrap();
        assert_eq!(config.parameter_count(), count, "{flavor}");
        let names = config.names();
        let places = |(name, shape): (String, Vec<usize>)| names.hf_names(&name, &shape);
        let shapes = config.parameter_shapes().into_iter();
        let theirs: Vec<String> = shapes.flat_map(|spec| places(spec).expect("a place")).collect();
        // Norms and attention; then a dense feed-forward, or a router, experts and shared ones.
        let block = 2 + if config.q_lora_rank.is_some() { 7 } else { 5 };
        let experts = 1 + usize::from(config.balanced()) + 3 * config.n_experts + 3;
        let sparse = config.n_layers - config.n_dense_layers;
        let all = 3 + config.n_layers * block + config.n_dense_layers * 3 + sparse * experts;
        assert_eq!(theirs.len(), all, "{flavor}");
    }
}

/// The modules have the parameters that the Hugging Face side knows of, and no others.
fn same_names_and_shapes(flavor: &str, tied: bool) {
    let model = build(flavor, Some(tied));
    let config = LlamaConfig::deserialize_value(&model.config).unwrap();
    assert_eq!(config.tie_embeddings, tied);
    let specs: Vec<_> =
        model.parameters().into_iter().map(|spec| (spec.name, spec.shape)).collect();
    assert_eq!(specs, config.parameter_shapes(), "{flavor}, tied: {tied}");
    let hf_names = |(name, shape): &(String, Vec<usize>)| LlamaConfig::NAMES.hf_names(name, shape);
    assert!(specs.iter().all(|spec| hf_names(spec).is_some_and(|names| names.len() == 1)));
    assert_eq!(model.parameter_count(), config.parameter_count());
    let head = specs.iter().any(|(name, _)| name == "output.weight");
    assert_eq!(head, !tied, "{flavor}");
    let matrix = (config.vocab_size * config.dim) as u64;
    let untied = LlamaConfig { tie_embeddings: false, ..config }.parameter_count();
    assert_eq!(untied - model.parameter_count(), if tied { matrix } else { 0 });
}
