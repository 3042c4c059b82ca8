//! Parameter names beside those of Hugging Face.

/// Names outside the blocks, and theirs.
const OUTER: Pairs = &[
    ("tok_embeddings.weight", "model.embed_tokens.weight"),
    ("norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Our names, and those of Hugging Face.
pub type Pairs = &'static [(&'static str, &'static str)];

/// The norms of a block.
pub const NORMS: Pairs = &[
    ("attention_norm.weight", "input_layernorm.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
];

/// The matrices of [`crate::FusedAttention`].
pub const ATTENTION: Pairs = &[
    ("attention.wq.weight", "self_attn.q_proj.weight"),
    ("attention.wk.weight", "self_attn.k_proj.weight"),
    ("attention.wv.weight", "self_attn.v_proj.weight"),
    ("attention.wo.weight", "self_attn.o_proj.weight"),
];

/// The norms of its queries and keys.
pub const QUERY_KEY_NORMS: Pairs = &[
    ("attention.q_norm.weight", "self_attn.q_norm.weight"),
    ("attention.k_norm.weight", "self_attn.k_norm.weight"),
];

/// Those of [`crate::feed_forward::FeedForward`].
pub const FEED_FORWARD: Pairs = &[
    ("feed_forward.w1.weight", "mlp.gate_proj.weight"),
    ("feed_forward.w2.weight", "mlp.down_proj.weight"),
    ("feed_forward.w3.weight", "mlp.up_proj.weight"),
];

/// What a family's parameters are called at Hugging Face.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The family, for messages.
    pub model: &'static str,
    /// Names inside block `N`: ours after `layers.N.`, and theirs after `model.layers.N.`.
    pub block: &'static [Pairs],
}

impl Names {
    /// The Hugging Face name of our parameter `name`, or `None` where it is not one.
    pub fn hf_name(&self, name: &str) -> Option<String> {
        match split_block(name, "layers.") {
            Some((block, rest)) => {
                let (_, theirs) = self.inner().find(|(ours, _)| *ours == rest)?;
                Some(format!("model.layers.{block}.{theirs}"))
            }
            None => {
                OUTER.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| theirs.to_string())
            }
        }
    }

    /// Our name of the Hugging Face tensor `name`, or `None` where it is not a parameter.
    pub fn our_name(&self, name: &str) -> Option<String> {
        match split_block(name, "model.layers.") {
            Some((block, rest)) => {
                let (ours, _) = self.inner().find(|(_, theirs)| *theirs == rest)?;
                Some(format!("layers.{block}.{ours}"))
            }
            None => {
                OUTER.iter().find(|(_, theirs)| *theirs == name).map(|(ours, _)| ours.to_string())
            }
        }
    }

    fn inner(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        self.block.iter().flat_map(|pairs| pairs.iter())
    }
}

/// `("3", "rest")` of `<prefix>3.rest`.
fn split_block<'a>(name: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let (block, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let number: usize = block.parse().ok()?;
    // Not `+1` or `01`.
    (number.to_string() == block).then_some((block, rest))
}

/// Whether our parameter is a linear weight: `[in, out]` here and `[out, in]` at Hugging Face.
/// Embeddings are `[vocab, dim]` in both, norms `[dim]`.
pub fn is_linear(name: &str) -> bool {
    name != "tok_embeddings.weight" && !name.ends_with("norm.weight")
}
