//! Llama 3 as the platform sees it.

use std::path::Path;

use burn::tensor::Device;
use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::hf::HfFolder;
use burn_titan_core::model::{
    FieldProblem, HfExtras, HfWeights, Model, ModelError, ModelFamily, ParameterRole,
};
use serde_json::{Map, Value};

use super::config::LlamaConfig;
use super::{hf, modules, plan};
use crate::attention::{Attention, FusedAttention};
use crate::config::ModelConfig;
use crate::family::{self, Attentions, Blocks};
use crate::initial::initial;

/// The Llama 3 family, with the attention modules that its blocks can use.
pub struct Llama3 {
    attentions: Attentions<LlamaConfig>,
}

impl Default for Llama3 {
    /// With [`FusedAttention`] as `fused`.
    fn default() -> Self {
        Self { attentions: Attentions::default() }.with_attention::<FusedAttention>("fused")
    }
}

impl Llama3 {
    /// Adds an attention module under the name that `model.attention` picks it by.
    pub fn with_attention<A: Attention>(mut self, name: &str) -> Self {
        let blocks = Blocks {
            units: modules::units::<A>,
            tensor_plan: plan::tensor_plan::<A>,
            shares_sequences: A::SHARES_SEQUENCES,
        };
        self.attentions.insert(name, blocks);
        self
    }
}

impl ModelFamily for Llama3 {
    fn name(&self) -> &str {
        LlamaConfig::FAMILY
    }

    fn flavors(&self) -> Vec<String> {
        family::flavors::<LlamaConfig>()
    }

    fn attentions(&self) -> Vec<String> {
        self.attentions.names()
    }

    fn resolve(
        &self,
        flavor: &str,
        overrides: &Map<String, Value>,
    ) -> Result<Value, Vec<FieldProblem>> {
        family::resolve::<LlamaConfig>(flavor, overrides)
    }

    fn build(&self, config: &Value, attention: &str) -> Result<Model, Vec<FieldProblem>> {
        let (config, blocks) = self.attentions.check(config, attention)?;
        let (dim, sizes, tensor_plan) = (config.dim, config.clone(), blocks.tensor_plan);
        Ok(Model {
            config: config.to_value(),
            units: (blocks.units)(&config, &Device::flex()),
            tensor_plan: Box::new(move || tensor_plan(&sizes, &Device::flex())),
            role: Box::new(|_| ParameterRole::Dense),
            experts: None,
            shares_sequences: blocks.shares_sequences,
            vocab_size: config.vocab_size,
            max_seq_len: config.max_seq_len,
            dim,
            attention_width: config.n_layers * config.n_heads * config.head_dim,
            embedding: "tok_embeddings.weight",
            initial: Box::new(move |spec| initial(dim, spec)),
        })
    }

    fn recognises(&self, hf_config: &Value) -> bool {
        family::is_architecture(hf_config, "LlamaForCausalLM", "llama")
    }

    fn config_from_hf(&self, folder: &HfFolder) -> Result<Value, ModelError> {
        Ok(hf::read_config(folder)?.to_value())
    }

    fn weights_from_hf<'a>(
        &self,
        config: &Value,
        folder: &'a HfFolder,
    ) -> Result<HfWeights<'a>, ModelError> {
        let weights = hf::read_parameters(folder, &family::parse(config)?)?;
        Ok(Box::new(weights.map(|weight| Ok(weight?))))
    }

    fn write_hf(
        &self,
        config: &Value,
        path: &Path,
        parameters: &mut dyn Iterator<Item = Result<HostTensor, ModelError>>,
        extras: &HfExtras<'_>,
    ) -> Result<(), ModelError> {
        let limit = burn_titan_core::hf::DEFAULT_MAX_SHARD_BYTES;
        hf::write_folder(path, &family::parse(config)?, parameters, extras, limit)
    }
}
