//! Our parameter names beside those of Hugging Face.

use crate::llama3::config::LlamaConfig;

/// Our names outside the blocks, and theirs.
const OUTER: [(&str, &str); 3] = [
    ("tok_embeddings.weight", "model.embed_tokens.weight"),
    ("norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Our names inside block `N` (after `layers.N.`), and theirs (after `model.layers.N.`).
const INNER: [(&str, &str); 9] = [
    ("attention_norm.weight", "input_layernorm.weight"),
    ("attention.wq.weight", "self_attn.q_proj.weight"),
    ("attention.wk.weight", "self_attn.k_proj.weight"),
    ("attention.wv.weight", "self_attn.v_proj.weight"),
    ("attention.wo.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("feed_forward.w1.weight", "mlp.gate_proj.weight"),
    ("feed_forward.w2.weight", "mlp.down_proj.weight"),
    ("feed_forward.w3.weight", "mlp.up_proj.weight"),
];

/// The Hugging Face name of our parameter `name`, or `None` where it is not one.
pub fn hf_name(name: &str) -> Option<String> {
    match split_block(name, "layers.") {
        Some((block, rest)) => {
            let (_, theirs) = INNER.iter().find(|(ours, _)| *ours == rest)?;
            Some(format!("model.layers.{block}.{theirs}"))
        }
        None => OUTER.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| theirs.to_string()),
    }
}

/// Our name of the Hugging Face tensor `name`, or `None` where it is not a parameter.
pub fn our_name(name: &str) -> Option<String> {
    match split_block(name, "model.layers.") {
        Some((block, rest)) => {
            let (ours, _) = INNER.iter().find(|(_, theirs)| *theirs == rest)?;
            Some(format!("layers.{block}.{ours}"))
        }
        None => OUTER.iter().find(|(_, theirs)| *theirs == name).map(|(ours, _)| ours.to_string()),
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

/// Names and shapes of all our parameters, from the embedding to the head; a tied head is none.
pub fn parameter_shapes(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let (dim, ffn, vocab) = (config.dim, config.ffn_dim, config.vocab_size);
    let queries = config.n_heads.saturating_mul(config.head_dim);
    let keys = config.n_kv_heads.saturating_mul(config.head_dim);
    let mut shapes = vec![("tok_embeddings.weight".to_string(), vec![vocab, dim])];
    for block in 0..config.n_layers {
        shapes.extend(INNER.iter().map(|(name, _)| {
            let shape = match *name {
                "attention.wq.weight" => vec![dim, queries],
                "attention.wk.weight" | "attention.wv.weight" => vec![dim, keys],
                "attention.wo.weight" => vec![queries, dim],
                "feed_forward.w1.weight" | "feed_forward.w3.weight" => vec![dim, ffn],
                "feed_forward.w2.weight" => vec![ffn, dim],
                _ => vec![dim],
            };
            (format!("layers.{block}.{name}"), shape)
        }));
    }
    shapes.push(("norm.weight".into(), vec![dim]));
    if !config.tie_embeddings {
        shapes.push(("output.weight".into(), vec![dim, vocab]));
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        let config = LlamaConfig { n_layers: 12, ..LlamaConfig::flavor("debug").unwrap() };
        let shapes = parameter_shapes(&config);
        assert_eq!(shapes.len(), 3 + 12 * 9);
        for (name, _) in &shapes {
            assert_eq!(our_name(&hf_name(name).unwrap()).as_ref(), Some(name));
        }
        assert_eq!(
            hf_name("layers.11.feed_forward.w3.weight").unwrap(),
            "model.layers.11.mlp.up_proj.weight"
        );
        assert_eq!(
            hf_name("layers.0.ffn_norm.weight").unwrap(),
            "model.layers.0.post_attention_layernorm.weight"
        );
        for name in
            ["layers.x.ffn_norm.weight", "layers.01.ffn_norm.weight", "layers.1", "norm", ""]
        {
            assert_eq!(hf_name(name), None, "{name}");
        }
        assert_eq!(our_name("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }

    #[test]
    fn shapes_add_up_to_the_count() {
        for flavor in LlamaConfig::FLAVORS {
            let config = LlamaConfig::flavor(flavor).unwrap();
            let sum: usize =
                parameter_shapes(&config).iter().map(|(_, s)| s.iter().product::<usize>()).sum();
            assert_eq!(sum as u64, config.parameter_count(), "{flavor}");
        }
    }
}
