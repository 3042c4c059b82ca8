//! The modules of Llama 3, readable as a single-device model:
//!
//! - pre-norm residual blocks: `x += attention(norm(x))`, `x += feed_forward(norm(x))`;
//! - RMSNorm, rotary positions, grouped key and value heads, SwiGLU, no biases;
//! - the head's matrix product and the loss are one operation, so that the logits of all tokens are
//!   never held at once.
//!
//! Weights of linear layers are `[in, out]`. The attention and the feed-forward are each a site ([`Context::site`]).

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use burn_titan_core::model::{
    Activations, Context, ModuleUnit, Site, Stream, Unit, UnitModule, Workload, parameter_elements,
};
use burn_titan_kernels::swiglu;

use super::activations::{self, BlockSizes, HeadSizes};
use super::config::LlamaConfig;
use crate::attention::{Attention, AttentionConfig};
use crate::linear::linear;
use crate::norm::RmsNorm;
use crate::rotary::Rotary;

/// The first unit: token ids to hidden states.
#[derive(Module, Debug)]
pub struct TokenEmbedding {
    tok_embeddings: Embedding,
}

impl UnitModule for TokenEmbedding {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        Stream::Hidden(context.embedding(self.tok_embeddings.weight.val(), input.tokens()))
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [vocab, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        Some(activations::embedding(vocab, dim, workload))
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [_, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        Some(vec![Site::Embedding { dim }])
    }
}

/// A block: attention and feed-forward, each with its norm and its residual.
#[derive(Module, Debug)]
pub struct Block<A: Attention> {
    attention_norm: RmsNorm,
    attention: A,
    ffn_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl<A: Attention> UnitModule for Block<A> {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        let x = input.hidden();
        let normed = self.attention_norm.forward(x.clone());
        let x = x + context.site(normed, |h| self.attention.forward(h, context));
        let normed = self.ffn_norm.forward(x.clone());
        let x = x + context.site_by_token(normed, |h| self.feed_forward.forward(h));
        Stream::Hidden(x)
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [dim, ffn_dim] = self.feed_forward.w1.weight.lazy_shape().dims();
        let attention_parameters = parameter_elements(&self.attention);
        let sizes = BlockSizes { dim, ffn_dim, attention_parameters };
        Some(activations::block(&sizes, &self.attention.activations(workload)?, workload))
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [dim, _] = self.feed_forward.w1.weight.lazy_shape().dims();
        let (enter, leave) = (Site::Enter { dim }, Site::Leave { dim });
        let by_token = Site::ByToken { dim };
        Some([&[enter], self.attention.sites()?.as_slice(), &[leave, by_token]].concat())
    }
}

/// `w2(silu(w1 x) * (w3 x))` (SwiGLU).
#[derive(Module, Debug)]
pub struct FeedForward {
    w1: Linear,
    w2: Linear,
    w3: Linear,
}

impl FeedForward {
    /// `[batch, seq, dim]` to `[batch, seq, dim]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = linear(x.clone(), self.w1.weight.val());
        let up = linear(x, self.w3.weight.val());
        linear(swiglu(gate, up), self.w2.weight.val())
    }
}

/// The last unit: final norm, output matrix, loss.
#[derive(Module, Debug)]
pub struct Head {
    norm: RmsNorm,
    output: Linear,
}

impl UnitModule for Head {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        context.output(self.norm.forward(input.hidden()), self.output.weight.val())
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [dim, words] = self.output.weight.lazy_shape().dims();
        Some(activations::head(&HeadSizes { words, dim, tied: false }, workload))
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [dim, _] = self.output.weight.lazy_shape().dims();
        Some(vec![Site::Output { dim }])
    }
}

/// The last unit where the output matrix is the embedding's.
#[derive(Module, Debug)]
pub struct TiedHead {
    norm: RmsNorm,
    tok_embeddings: Embedding,
}

impl UnitModule for TiedHead {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        let weight = self.tok_embeddings.weight.val().transpose();
        context.output(self.norm.forward(input.hidden()), weight)
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [words, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        Some(activations::head(&HeadSizes { words, dim, tied: true }, workload))
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [_, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        Some(vec![Site::Output { dim }])
    }
}

/// The sizes of a block's attention.
pub(super) fn attention_config(config: &LlamaConfig) -> AttentionConfig {
    AttentionConfig {
        dim: config.dim,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        rotary: Rotary {
            head_dim: config.head_dim,
            theta: config.rope_theta,
            scaling: config.rope_scaling,
        },
    }
}

/// The units of a model: embedding, blocks, head. Allocates nothing.
pub fn units<A: Attention>(config: &LlamaConfig, device: &Device) -> Vec<Box<dyn Unit>> {
    let embedding = || EmbeddingConfig::new(config.vocab_size, config.dim).init(device);
    let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
    let norm = || RmsNorm::new(config.dim, config.norm_eps, device);
    let attention = attention_config(config);
    let first = TokenEmbedding { tok_embeddings: embedding() };
    let mut units = vec![ModuleUnit::boxed("tok_embeddings", "", first)];
    for i in 0..config.n_layers {
        let name = format!("layers.{i}");
        let block = Block {
            attention_norm: norm(),
            attention: A::new(&attention, device),
            ffn_norm: norm(),
            feed_forward: FeedForward {
                w1: linear(config.dim, config.ffn_dim),
                w2: linear(config.ffn_dim, config.dim),
                w3: linear(config.dim, config.ffn_dim),
            },
        };
        units.push(ModuleUnit::boxed(&name, &name, block));
    }
    units.push(if config.tie_embeddings {
        ModuleUnit::boxed("head", "", TiedHead { norm: norm(), tok_embeddings: embedding() })
    } else {
        let output = linear(config.dim, config.vocab_size);
        ModuleUnit::boxed("head", "", Head { norm: norm(), output })
    });
    units
}
