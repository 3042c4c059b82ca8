//! Parameter names beside those of Hugging Face.

use Theirs::{Tensor, Zeros};

/// Names outside the blocks, and theirs.
const OUTER: Pairs = &[
    ("tok_embeddings.weight", Tensor("model.embed_tokens.weight")),
    ("norm.weight", Tensor("model.norm.weight")),
    ("output.weight", Tensor("lm_head.weight")),
];

/// Our names, and what they are at Hugging Face.
pub type Pairs = &'static [(&'static str, Theirs)];

/// What one of our parameters is at Hugging Face. Their matrices are `[out, in]` and ours `[in, out]`, but for the
/// embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theirs {
    /// A tensor.
    Tensor(&'static str),
    /// A matrix of each expert, where ours are one tensor `[experts, in, out]`. A folder has either a tensor for each
    /// expert, as published ones do, or one for all, as `transformers` 5 computes with them.
    Experts {
        /// What the tensor of expert `E` is: `mlp.experts.E.<matrix>.weight`.
        matrix: &'static str,
        /// What the tensor of all experts is: `mlp.experts.<stacked>`, `[experts, parts * out, in]`.
        stacked: &'static str,
        /// Which of its parts the matrix is.
        part: usize,
        /// Matrices of an expert in it, one after the other.
        parts: usize,
    },
    /// No tensor: theirs computes as ours does with zeros.
    Zeros,
}

/// The norms of a block.
pub const NORMS: Pairs = &[
    ("attention_norm.weight", Tensor("input_layernorm.weight")),
    ("ffn_norm.weight", Tensor("post_attention_layernorm.weight")),
];

/// The matrices of [`crate::FusedAttention`].
pub const ATTENTION: Pairs = &[
    ("attention.wq.weight", Tensor("self_attn.q_proj.weight")),
    ("attention.wk.weight", Tensor("self_attn.k_proj.weight")),
    ("attention.wv.weight", Tensor("self_attn.v_proj.weight")),
    ("attention.wo.weight", Tensor("self_attn.o_proj.weight")),
];

/// The norms of its queries and keys.
pub const QUERY_KEY_NORMS: Pairs = &[
    ("attention.q_norm.weight", Tensor("self_attn.q_norm.weight")),
    ("attention.k_norm.weight", Tensor("self_attn.k_norm.weight")),
];

/// Those of [`crate::feed_forward::FeedForward`].
pub const FEED_FORWARD: Pairs = &[
    ("feed_forward.w1.weight", Tensor("mlp.gate_proj.weight")),
    ("feed_forward.w2.weight", Tensor("mlp.down_proj.weight")),
    ("feed_forward.w3.weight", Tensor("mlp.up_proj.weight")),
];

/// The router and the experts of [`crate::moe::MixtureOfExperts`].
pub const EXPERTS: Pairs = &[
    ("feed_forward.router.weight", Tensor("mlp.gate.weight")),
    ("feed_forward.experts.w1", experts("gate_proj", "gate_up_proj", 0, 2)),
    ("feed_forward.experts.w2", experts("down_proj", "down_proj", 0, 1)),
    ("feed_forward.experts.w3", experts("up_proj", "gate_up_proj", 1, 2)),
];

/// What balances the choice of experts, in a family that has no tensor for it.
pub const UNBALANCED: Pairs = &[("feed_forward.router.bias", Zeros)];

const fn experts(matrix: &'static str, stacked: &'static str, part: usize, parts: usize) -> Theirs {
    Theirs::Experts { matrix, stacked, part, parts }
}

/// What a family's parameters are called at Hugging Face.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The family, for messages.
    pub model: &'static str,
    /// Names inside block `N`: ours after `layers.N.`, and theirs after `model.layers.N.`.
    pub block: &'static [Pairs],
}

impl Names {
    /// What our parameter `name` is at Hugging Face, and what goes before the names of its tensors there; `None` where
    /// it is not one of the family.
    pub(super) fn find(&self, name: &str) -> Option<(String, Theirs)> {
        let of = |pairs: Pairs, name: &str| {
            pairs.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs)
        };
        match split_block(name) {
            Some((block, rest)) => {
                let theirs = self.block.iter().find_map(|pairs| of(pairs, rest))?;
                Some((format!("model.layers.{block}."), theirs))
            }
            None => Some((String::new(), of(OUTER, name)?)),
        }
    }
}

/// `("3", "rest")` of `layers.3.rest`.
fn split_block(name: &str) -> Option<(&str, &str)> {
    let (block, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let number: usize = block.parse().ok()?;
    // Not `+1` or `01`.
    (number.to_string() == block).then_some((block, rest))
}
