//! Qwen3 as modules: a token embedding, blocks of attention and SwiGLU ([`Block`]), and a head.
//!
//! RMSNorm, also of each head's queries and keys; rotary positions, grouped key and value heads, no biases.

use burn::tensor::Device;
use burn_titan_core::model::{Heads, Model, ParameterRole, PlanError, TensorPlan, Unit};

use super::config::Qwen3Config;
use crate::attention::{Attention, AttentionConfig};
use crate::block::Block;
use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::norm::RmsNorm;
use crate::rotary::Rotary;
use crate::{embedding, head, initial, plan};

/// The model of these sizes. Allocates nothing.
pub fn model<A: Attention>(config: &Qwen3Config) -> Model {
    let (dim, tied, sizes) = (config.dim, config.tie_embeddings, config.clone());
    Model {
        config: config.to_value(),
        training_fields: &[],
        units: units::<A>(config, &Device::flex()),
        tensor_plan: Box::new(move || tensor_plan::<A>(&sizes)),
        role: Box::new(|_| ParameterRole::Dense),
        experts: None,
        shares_sequences: A::SHARES_SEQUENCES,
        vocab_size: config.vocab_size,
        max_seq_len: config.max_seq_len,
        dim,
        attention_width: config.n_layers * config.n_heads * config.head_dim,
        embedding: "tok_embeddings.weight",
        initial: Box::new(move |spec| match spec.name.as_str() {
            // As the output matrix that it is too.
            "tok_embeddings.weight" if tied => initial::output(dim),
            _ => initial::initial(dim, spec),
        }),
    }
}

/// Embedding, blocks, head.
fn units<A: Attention>(config: &Qwen3Config, device: &Device) -> Vec<Box<dyn Unit>> {
    let norm = || RmsNorm::new(config.dim, config.norm_eps, device);
    let attention = attention_config(config);
    let block = |_| Block {
        attention_norm: norm(),
        attention: A::new(&attention, device).with_query_key_norm(config.norm_eps, device),
        ffn_norm: norm(),
        feed_forward: FeedForward::new(config.dim, config.ffn_dim, device),
    };
    let mut units = vec![embedding::unit(config.vocab_size, config.dim, device)];
    units.extend((0..config.n_layers).map(block).enumerate().map(|(i, block)| block.unit(i)));
    units.push(head::unit(norm(), config.vocab_size, config.tie_embeddings, device));
    units
}

/// The sizes of a block's attention.
fn attention_config(config: &Qwen3Config) -> AttentionConfig {
    let Qwen3Config { dim, n_heads, n_kv_heads, head_dim, rope_theta: theta, .. } = *config;
    let rotary = Rotary { head_dim, theta, scaling: None };
    AttentionConfig { dim, n_heads, n_kv_heads, head_dim, rotary }
}

/// How ranks that split matrix products share the parameters.
fn tensor_plan<A: Attention>(config: &Qwen3Config) -> Result<TensorPlan, PlanError> {
    let attention = A::plan(&attention_config(config), &Device::flex())?;
    let heads = Heads { query: config.n_heads, key: config.n_kv_heads };
    let sublayers = [("attention", attention), ("feed_forward", FeedForward::plan())];
    Ok(plan::tensor_plan(heads, sublayers))
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Tensor;
    use burn_titan_core::model::{Context, ExpertRank, ModelFamily, TensorRank};

    use super::*;
    use crate::{FusedAttention, Qwen3};

    /// One head of the width of the stream, which mixes nothing and knows of no norms.
    #[derive(Module, Debug)]
    struct Plain {
        output: Linear,
    }

    impl Attention for Plain {
        fn new(config: &AttentionConfig, device: &Device) -> Self {
            let width = config.n_heads * config.head_dim;
            Self { output: LinearConfig::new(width, config.dim).with_bias(false).init(device) }
        }

        fn forward(&self, x: Tensor<3>, _: &Context) -> Tensor<3> {
            x
        }
    }

    #[test]
    fn a_custom_attention_has_norms_if_it_makes_them() {
        let family = Qwen3::default().with_attention::<Plain>("plain");
        assert_eq!(family.attentions(), ["fused", "plain"]);
        let config = Qwen3Config::flavor("debug").unwrap().to_value();
        let names = |attention: &str| -> Vec<String> {
            let model = family.build(&config, attention).unwrap();
            let names = model.units[1].parameters().into_iter().map(|spec| spec.name);
            names.filter(|name| name.contains(".attention.")).collect()
        };
        assert_eq!(names("plain"), ["layers.0.attention.output.weight"]);
        let of_block = |name| format!("layers.0.attention.{name}.weight");
        assert_eq!(names("fused"), ["wq", "wk", "wv", "wo", "q_norm", "k_norm"].map(of_block));
    }

    /// The norms are whole on every rank, and their gradients are of its heads alone.
    #[test]
    fn norms_are_shared_by_the_ranks() {
        let config = Qwen3Config::flavor("debug").unwrap();
        let model = model::<FusedAttention>(&config);
        let tensor = TensorRank { rank: 1, ranks: 2, sequence: false };
        let cuts = model.cuts(tensor, ExpertRank::ALONE).unwrap();
        let found = std::iter::zip(model.parameters(), cuts);
        let norms: Vec<_> =
            found.filter(|(spec, _)| spec.name.ends_with("q_norm.weight")).collect();
        assert_eq!(norms.len(), config.n_layers);
        for (_, cut) in norms {
            assert_eq!((cut.shape, cut.holders, cut.partial), (vec![config.head_dim], 0..2, true));
        }
    }
}
