//! Initial values, as torchtitan's models have them.

use burn_titan_core::model::{Initial, ParameterSpec};

/// The distribution of a parameter's initial values, in a model of width `dim`:
///
/// | parameter | distribution |
/// |---|---|
/// | embedding | N(0, 1) |
/// | `wq`, `wk`, `wv`, `w1`, routers | normal of 0.02, cut at 2 |
/// | `wo`, `w2`, `w3` of layer l | normal of `0.02 / sqrt(2 (l + 1))`, cut at 2 |
/// | output | [`output`] |
/// | norms | 1 |
///
/// Other parameters of a block get ones (vectors called `weight` or `gamma`), zeros (other vectors) or what `wq` gets.
pub fn initial(dim: usize, spec: &ParameterSpec) -> Initial {
    let parts: Vec<&str> = spec.name.split('.').collect();
    let layer = match parts.as_slice() {
        ["layers", layer, ..] => layer.parse::<usize>().unwrap_or(0),
        _ => 0,
    };
    let truncated = |std| Initial::TruncatedNormal { std, limit: 2.0 };
    let deep = 0.02 / (2.0 * (layer as f64 + 1.0)).sqrt();
    match parts.as_slice() {
        ["tok_embeddings", ..] => Initial::Normal { std: 1.0 },
        ["output", "weight"] => output(dim),
        [.., "wo" | "w2" | "w3", "weight"] | [.., "experts", "w2" | "w3"] => truncated(deep),
        [.., "weight" | "gamma"] if spec.shape.len() == 1 => Initial::Ones,
        _ if spec.shape.len() == 1 => Initial::Zeros,
        _ => truncated(0.02),
    }
}

/// That of the output matrix: normal of `dim^-0.5`, cut at 3 standard deviations.
pub fn output(dim: usize) -> Initial {
    let std = (dim as f64).powf(-0.5);
    Initial::TruncatedNormal { std, limit: 3.0 * std }
}
