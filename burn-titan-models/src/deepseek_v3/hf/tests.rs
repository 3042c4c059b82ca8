use std::path::PathBuf;

use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::hf::{HfFolder, HfWriter};
use burn_titan_core::model::HfExtras;
use tempfile::tempdir;

use super::*;
use crate::hf::{read_config, read_parameters, write_folder};

fn read(json: &Value) -> Result<DeepSeekV3Config, String> {
    let config = DeepSeekV3Config::from_json(json, Path::new("config.json"));
    config.map_err(|error| error.to_string())
}

/// DeepSeek-V3 as it was published, but for its weights in 8 bits.
fn v3() -> Value {
    serde_json::from_str(
        r#"{
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
        "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
        "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn"},
        "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
        "use_cache": true, "v_head_dim": 128, "vocab_size": 129280}"#,
    )
    .unwrap()
}

/// DeepSeek-V2-Lite as it was published.
fn v2_lite() -> Value {
    serde_json::from_str(
        r#"{
        "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 10944,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6,
        "num_hidden_layers": 27, "num_key_value_heads": 16, "pretraining_tp": 1, "q_lora_rank": null,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": true,
        "tie_word_embeddings": false, "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16",
        "use_cache": true, "v_head_dim": 128, "vocab_size": 102400}"#,
    )
    .unwrap()
}

fn flavor(name: &str) -> DeepSeekV3Config {
    let flavor = DeepSeekV3Config::flavor(name).unwrap();
    DeepSeekV3Config { load_balance_rate: 0.0, sequence_balance_loss: 0.0, ..flavor }
}

#[test]
fn both_styles_give_the_published_configs() {
    for (mut json, name) in [(v3(), "671b"), (v2_lite(), "16b")] {
        assert_eq!(read(&json).unwrap(), flavor(name), "{name}");
        let object = json.as_object_mut().unwrap();
        let (theta, scaling) = (object.remove("rope_theta"), object.remove("rope_scaling"));
        let mut parameters = scaling.unwrap();
        parameters["rope_theta"] = theta.unwrap();
        parameters["rope_type"] = parameters.as_object_mut().unwrap().remove("type").unwrap();
        json["rope_parameters"] = parameters;
        assert_eq!(read(&json).unwrap(), flavor(name), "{name}");
    }
}

/// All but what balances the experts, which no key there says.
#[test]
fn every_flavor_survives_the_way_there_and_back() {
    for name in DeepSeekV3Config::FLAVORS {
        let config = flavor(name);
        let json = config.to_json(HostDtype::BF16);
        assert_eq!(read(&json).unwrap(), config, "{name}");
        let mut old = json.clone();
        old.as_object_mut().unwrap().remove("rope_parameters");
        assert_eq!(read(&old).unwrap(), config, "{name}");
        let mut unnamed = json;
        unnamed.as_object_mut().unwrap().remove("architectures");
        assert_eq!(read(&unnamed).unwrap(), config, "{name}");
    }
    assert_eq!(flavor("236b").to_json(HostDtype::F32)["topk_method"], "group_limited_greedy");
}

#[test]
fn what_ours_does_not_do_is_refused() {
    let cases = [
        (
            "architectures",
            json!(["DeepseekForCausalLM"]),
            "architectures` is [\"DeepseekForCausalLM\"]: only DeepseekV3ForCausalLM or DeepseekV2ForCausalLM is \
             supported here",
        ),
        ("rope_interleave", json!(false), "rope_interleave` is false: only true is supported"),
        ("num_key_value_heads", json!(1), "num_key_value_heads` is 1: only 128 is supported"),
        (
            "quantization_config",
            json!({"quant_method": "fp8"}),
            "quantization_config` is {\"quant_method\":\"fp8\"}: only null is supported",
        ),
        ("moe_layer_freq", json!(2), "moe_layer_freq` is 2: only 1 is supported"),
        (
            "scoring_func",
            json!("softmax"),
            "scoring_func` is \"softmax\": only \"sigmoid\" is supported",
        ),
        (
            "topk_method",
            json!("greedy"),
            "topk_method` is \"greedy\": only \"noaux_tc\" is supported",
        ),
        ("n_routed_experts", json!(255), "n_group` is 8: expected a divisor of n_experts (255)"),
        ("topk_group", json!(9), "topk_group` is 9: expected at most 8"),
        ("first_k_dense_replace", json!(62), "first_k_dense_replace` is 62: expected at most 61"),
        ("kv_lora_rank", Value::Null, "kv_lora_rank` is missing: expected a whole number"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2}),
            "rope_scaling.type` is \"linear\": only \"default\" and \"yarn\" are supported",
        ),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 2}),
            "rope_scaling.mscale` is missing: expected a number",
        ),
    ];
    for (key, value, problem) in cases {
        let mut json = v3();
        json[key] = value;
        assert_eq!(read(&json).unwrap_err(), format!("config.json: key `{problem}"));
    }
    let mut json = v2_lite();
    json["topk_method"] = json!("noaux_tc");
    assert_eq!(
        read(&json).unwrap_err(),
        "config.json: key `topk_method` is \"noaux_tc\": only \"greedy\" and \"group_limited_greedy\" are supported"
    );
}

fn golden() -> HfFolder {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/deepseek_v3_tiny");
    HfFolder::open(&path).unwrap()
}

fn parameters(folder: &HfFolder, config: &DeepSeekV3Config) -> Result<Vec<HostTensor>, String> {
    let parameters = read_parameters(folder, config).map_err(|error| error.to_string())?;
    parameters.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

fn write(
    path: &Path,
    config: &DeepSeekV3Config,
    parameters: Vec<HostTensor>,
) -> Result<HfFolder, String> {
    let parameters = parameters.into_iter().map(Ok::<_, ModelFolderError>);
    write_folder(path, config, parameters, &HfExtras::default(), u64::MAX)
        .map_err(|error| error.to_string())?;
    Ok(HfFolder::open(path).unwrap())
}

#[test]
fn the_golden_folder_survives_the_way_there_and_back() {
    let (folder, out) = (golden(), tempdir().unwrap());
    let config: DeepSeekV3Config = read_config(&folder).unwrap();
    assert_eq!((config.n_layers, config.n_dense_layers, config.n_experts), (3, 1, 8));
    assert_eq!((config.n_groups, config.chosen_groups, config.rope_scaling), (4, 2, None));
    let ours = parameters(&folder, &config).unwrap();
    let count: usize = ours.iter().map(|p| p.shape().iter().product::<usize>()).sum();
    assert_eq!(count as u64, config.parameter_count());
    let bias = ours.iter().find(|p| p.name() == "layers.2.feed_forward.router.bias").unwrap();
    assert!(bias.to_f32().unwrap().iter().any(|value| *value != 0.0));
    let again = write(&out.path().join("again"), &config, ours).unwrap();
    assert_eq!(read_config::<DeepSeekV3Config>(&again).unwrap(), config);
    assert!(again.names().eq(folder.names()));
    for name in folder.names() {
        assert_eq!(again.read(name).unwrap(), folder.read(name).unwrap());
    }
}

/// What predicts a second token is layer 3 of 3; a layer that the config lacks is none of it.
#[test]
fn layers_behind_the_last_are_ignored() {
    let (folder, out) = (golden(), tempdir().unwrap());
    let config: DeepSeekV3Config = read_config(&folder).unwrap();
    let path = out.path().join("more");
    let mut writer = HfWriter::create(&path, folder.config(), u64::MAX).unwrap();
    for name in folder.names() {
        writer.write(folder.read(name).unwrap()).unwrap();
    }
    for name in ["model.layers.3.eh_proj.weight", "model.layers.3.mlp.gate.weight"] {
        writer.write(HostTensor::from_f32(name, &[1], &[1.0]).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let more = HfFolder::open(&path).unwrap();
    assert_eq!(parameters(&more, &config).unwrap(), parameters(&folder, &config).unwrap());
    let fewer = DeepSeekV3Config { n_layers: 2, ..config };
    let refused = parameters(&folder, &fewer).unwrap_err();
    assert!(refused.contains("`model.layers.2."), "{refused}");
    assert!(refused.contains("is no part of a DeepSeek-V3 model"), "{refused}");
}

/// DeepSeek-V2 has no tensor for what balances the choice.
#[test]
fn numbers_that_balance_have_a_place_in_v3_alone() {
    let (folder, out) = (golden(), tempdir().unwrap());
    let v3: DeepSeekV3Config = read_config(&folder).unwrap();
    let ours = parameters(&folder, &v3).unwrap();
    let v2 = DeepSeekV3Config {
        scores: ExpertScores::Softmax,
        renormalise: false,
        load_balance_rate: 1e-3,
        ..v3
    };
    assert_eq!(
        write(&out.path().join("moved"), &v2, ours.clone()).unwrap_err(),
        "parameter `layers.1.feed_forward.router.bias` is not 0, but a DeepSeek-V2 model of Hugging Face has no tensor \
         for it, and would choose other experts: train with `model.overrides.load_balance_rate: 0` to write such a \
         folder"
    );
    let plain = DeepSeekV3Config { load_balance_rate: 0.0, ..v2 };
    let unbiased = ours.into_iter().filter(|p| !p.name().ends_with("router.bias")).collect();
    let again = write(&out.path().join("plain"), &plain, unbiased).unwrap();
    assert_eq!(read_config::<DeepSeekV3Config>(&again).unwrap(), plain);
    assert_eq!(again.names().count(), folder.names().count() - 2);
}
