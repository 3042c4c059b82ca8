//! How the parameters of a model lie on the ranks that split its matrix products.

use burn_titan_core::model::{Heads, Line, Split, TensorPlan};

/// All but what the blocks' sub-layers say themselves.
const LINES: [(&str, Split); 4] = [
    ("tok_embeddings.weight", Split::Shard(0)),
    ("layers.*.{attention_norm,ffn_norm}.weight", Split::Replicate),
    ("norm.weight", Split::Replicate),
    ("output.weight", Split::Shard(1)),
];

/// The plan of a model whose blocks have sub-layers of these names with these lines.
pub fn tensor_plan<const N: usize>(heads: Heads, sublayers: [(&str, Vec<Line>); N]) -> TensorPlan {
    let outer = LINES.iter().map(|(pattern, split)| (pattern.to_string(), *split));
    let inner = sublayers.into_iter().flat_map(|(sublayer, lines)| {
        let name = move |name: String| format!("layers.*.{sublayer}.{name}");
        lines.into_iter().map(move |(pattern, split)| (name(pattern), split))
    });
    TensorPlan { lines: outer.chain(inner).collect(), heads }
}
