//! How an attention's heads lie in its parameters, told from their shapes.

use burn::tensor::Device;
use burn_titan_core::model::{Line, ParameterSpec, PlanError, Split, parameter_specs};

use super::{Attention, AttentionConfig};

/// The lines of the plan of an attention that says nothing of it: a dim that grows with the query heads holds those,
/// one that grows with the key heads those, one after the other; any other parameter is whole on every rank.
///
/// The module is made for three configs and its parameters' shapes are compared. Allocates nothing.
///
/// # Errors
/// A parameter that cannot be split so: a dim that grows with both, or not in proportion; a bias that every rank
/// would add to the sum; or no parameter that depends on the heads.
pub(super) fn lines<A: Attention>(
    config: &AttentionConfig,
    device: &Device,
) -> Result<Vec<Line>, PlanError> {
    let specs = |config: &AttentionConfig| parameter_specs(&A::new(config, device));
    let base = specs(config);
    let queries = specs(&AttentionConfig { n_heads: 2 * config.n_heads, ..config.clone() });
    let all = specs(&AttentionConfig {
        n_heads: 2 * config.n_heads,
        n_kv_heads: 2 * config.n_kv_heads,
        ..config.clone()
    });
    let wide = specs(&AttentionConfig { dim: 2 * config.dim, ..config.clone() });
    let refused =
        |name: &str, cause: &str| PlanError::Attention { name: name.into(), cause: cause.into() };
    if [&queries, &all, &wide].iter().any(|other| !same_names(&base, other)) {
        return Err(refused("the attention", "has other parameters for another number of heads"));
    }
    let mut lines = Vec::new();
    for (i, spec) in base.iter().enumerate() {
        let grown = |other: &[ParameterSpec]| grown(&spec.shape, &other[i].shape);
        let refused = |cause| Err(refused(&spec.name, cause));
        let split = match (grown(&queries), grown(&all), grown(&wide)) {
            (Growth::None, Growth::None, Growth::Twice(_)) if spec.name.ends_with("bias") => {
                return refused("does not depend on the heads: each rank would add it to the sum");
            }
            (Growth::None, Growth::None, _) => Split::ReplicateInSite,
            (Growth::None, Growth::Twice(dim), _) => Split::KeyHeads(dim),
            (Growth::Twice(dim), Growth::Twice(same), _) if dim == same => Split::QueryHeads(dim),
            _ => return refused("does not hold query heads alone, or key heads alone, in one dim"),
        };
        lines.push((spec.name.clone(), split));
    }
    if lines.iter().all(|(_, split)| *split == Split::ReplicateInSite) {
        return Err(refused("the attention", "has no parameter that depends on n_heads"));
    }
    Ok(lines)
}

/// How a shape differs from another.
enum Growth {
    None,
    /// This dim is twice as long.
    Twice(usize),
    Other,
}

fn grown(from: &[usize], to: &[usize]) -> Growth {
    let changed: Vec<usize> = (0..from.len()).filter(|dim| from[*dim] != to[*dim]).collect();
    match changed.as_slice() {
        [] => Growth::None,
        [dim] if to[*dim] == 2 * from[*dim] => Growth::Twice(*dim),
        _ => Growth::Other,
    }
}

fn same_names(a: &[ParameterSpec], b: &[ParameterSpec]) -> bool {
    let same = |(a, b): (&ParameterSpec, &ParameterSpec)| {
        a.name == b.name && a.shape.len() == b.shape.len()
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}
