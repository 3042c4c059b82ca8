//! A family of models whose blocks are the dense ones of DeepSeek, for tests of latent attention in whole runs.

use std::path::Path;

use burn::tensor::Device;
use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::hf::HfFolder;
use burn_titan_core::model::{
    FieldProblem, HfExtras, HfWeights, Model, ModelError, ModelFamily, ParameterRole, Registry,
};
use burn_titan_models::config::ModelConfig;
use burn_titan_models::deepseek_v3::{DeepSeekV3Config, modules};
use burn_titan_models::initial::initial;
use burn_titan_models::norm::RmsNorm;
use burn_titan_models::{embedding, head};
use serde_json::{Map, Value};

/// The models of burn-titan, and `latent`.
pub fn registry() -> Registry {
    burn_titan_models::registry().with(Latent)
}

/// The family.
pub struct Latent;

/// The model of these sizes.
pub fn model(config: &DeepSeekV3Config) -> Model {
    let (device, dim, sizes) = (Device::flex(), config.dim, config.clone());
    let block = |i| modules::dense_block(config, &device).unit(i);
    let norm = RmsNorm::new(dim, config.norm_eps, &device);
    let mut units = vec![embedding::unit(config.vocab_size, dim, &device)];
    units.extend((0..config.n_layers).map(block));
    units.push(head::unit(norm, config.vocab_size, false, &device));
    Model {
        config: config.to_value(),
        units,
        tensor_plan: Box::new(move || Ok(modules::tensor_plan(&sizes))),
        role: Box::new(|_| ParameterRole::Dense),
        experts: None,
        shares_sequences: true,
        vocab_size: config.vocab_size,
        max_seq_len: config.max_seq_len,
        dim,
        attention_width: config.n_layers * config.n_heads * config.qk_head_dim(),
        embedding: "tok_embeddings.weight",
        initial: Box::new(move |spec| initial(dim, spec)),
    }
}

fn no_folders() -> ModelError {
    ModelError::new("this family has no Hugging Face folders")
}

impl ModelFamily for Latent {
    fn name(&self) -> &str {
        "latent"
    }

    fn flavors(&self) -> Vec<String> {
        vec!["debug".into()]
    }

    fn attentions(&self) -> Vec<String> {
        vec!["fused".into()]
    }

    fn resolve(
        &self,
        flavor: &str,
        overrides: &Map<String, Value>,
    ) -> Result<Value, Vec<FieldProblem>> {
        let mut config = DeepSeekV3Config::flavor(flavor).expect("a flavor").to_value();
        for (name, value) in overrides {
            config[name] = value.clone();
        }
        Ok(config)
    }

    fn build(&self, config: &Value, _: &str) -> Result<Model, Vec<FieldProblem>> {
        let config: DeepSeekV3Config =
            serde_json::from_value(config.clone()).expect("sizes of a DeepSeek");
        assert_eq!(config.validate(), []);
        Ok(model(&config))
    }

    fn recognises(&self, _: &Value) -> bool {
        false
    }

    fn config_from_hf(&self, _: &HfFolder) -> Result<Value, ModelError> {
        Err(no_folders())
    }

    fn weights_from_hf<'a>(&self, _: &Value, _: &'a HfFolder) -> Result<HfWeights<'a>, ModelError> {
        Err(no_folders())
    }

    fn write_hf(
        &self,
        _: &Value,
        _: &Path,
        _: &mut dyn Iterator<Item = Result<HostTensor, ModelError>>,
        _: &HfExtras<'_>,
    ) -> Result<(), ModelError> {
        Err(no_folders())
    }
}
