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
    let refused = |name: Option<&str>, cause: &str| PlanError::Attention {
        name: name.map(String::from),
        cause: cause.into(),
    };
    if [&queries, &all, &wide].iter().any(|other| !same_names(&base, other)) {
        return Err(refused(None, "has other parameters for another number of heads"));
    }
    let mut lines = Vec::new();
    for (i, spec) in base.iter().enumerate() {
        let grown = |other: &[ParameterSpec]| grown(&spec.shape, &other[i].shape);
        let refused = |cause| Err(refused(Some(&spec.name), cause));
        // Heads one after the other, and nothing beside them: as many indices as heads, or as their widths.
        let holds = |dim: usize, heads: usize| {
            let length = spec.shape[dim];
            length == heads || length == heads * config.head_dim
        };
        let split = match (grown(&queries), grown(&all), grown(&wide)) {
            (Growth::None, Growth::None, Growth::Twice(_)) if spec.name.ends_with("bias") => {
                return refused("does not depend on the heads: each rank would add it to the sum");
            }
            (Growth::None, Growth::None, _) => Split::ReplicateInSite,
            (Growth::None, Growth::Twice(dim), _) if holds(dim, config.n_kv_heads) => {
                Split::KeyHeads(dim)
            }
            (Growth::Twice(dim), Growth::Twice(same), _)
                if dim == same && holds(dim, config.n_heads) =>
            {
                Split::QueryHeads(dim)
            }
            _ => return refused("does not hold query heads alone, or key heads alone, in one dim"),
        };
        lines.push((spec.name.clone(), split));
    }
    if lines.iter().all(|(_, split)| *split == Split::ReplicateInSite) {
        return Err(refused(None, "has no parameter that depends on n_heads"));
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

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Tensor;
    use burn_titan_core::model::Context;

    use super::*;
    use crate::attention::FusedAttention;
    use crate::norm::RmsNorm;
    use crate::rotary::Rotary;

    fn config() -> AttentionConfig {
        let rotary = Rotary { head_dim: 8, theta: 1e4, scaling: None };
        AttentionConfig { dim: 24, n_heads: 6, n_kv_heads: 3, head_dim: 8, rotary }
    }

    /// An attention with the parameters that `shapes` says of a config; it is never run.
    macro_rules! attention {
        ($name:ident, $bias:expr, $shapes:expr) => {
            #[derive(Module, Debug)]
            struct $name {
                input: Linear,
                keys: Linear,
                output: Linear,
                norm: RmsNorm,
            }

            impl Attention for $name {
                fn new(config: &AttentionConfig, device: &Device) -> Self {
                    let linear = |[from, to]: [usize; 2], bias: bool| {
                        LinearConfig::new(from, to).with_bias(bias).init(device)
                    };
                    let shapes: fn(&AttentionConfig) -> [[usize; 2]; 3] = $shapes;
                    let [input, keys, output] = shapes(config);
                    Self {
                        input: linear(input, true),
                        keys: linear(keys, false),
                        output: linear(output, $bias),
                        norm: RmsNorm::new(config.head_dim, 1e-6, device),
                    }
                }

                fn forward(&self, x: Tensor<3>, _: &Context) -> Tensor<3> {
                    x
                }
            }
        };
    }

    fn width(heads: usize, config: &AttentionConfig) -> usize {
        heads * config.head_dim
    }

    attention!(Plain, false, |c| [
        [c.dim, width(c.n_heads, c)],
        [c.dim, width(c.n_kv_heads, c)],
        [width(c.n_heads, c), c.dim]
    ]);
    attention!(Biased, true, |c| [
        [c.dim, width(c.n_heads, c)],
        [c.dim, width(c.n_kv_heads, c)],
        [width(c.n_heads, c), c.dim]
    ]);
    attention!(Together, false, |c| [
        [c.dim, width(c.n_heads + 2 * c.n_kv_heads, c)],
        [c.dim, width(c.n_kv_heads, c)],
        [width(c.n_heads, c), c.dim]
    ]);
    attention!(KeysAndValues, false, |c| [
        [c.dim, width(c.n_heads, c)],
        [c.dim, width(2 * c.n_kv_heads, c)],
        [width(c.n_heads, c), c.dim]
    ]);
    attention!(OneHead, false, |c| [[c.dim, c.head_dim], [c.dim, c.head_dim], [c.head_dim, c.dim]]);

    fn told<A: Attention>() -> Result<Vec<Line>, String> {
        A::plan(&config(), &Device::flex()).map_err(|error| error.to_string())
    }

    #[test]
    fn shapes_tell_where_heads_are() {
        let line = |name: &str, split| (name.to_string(), split);
        let want = [
            line("input.weight", Split::QueryHeads(1)),
            line("input.bias", Split::QueryHeads(0)),
            line("keys.weight", Split::KeyHeads(1)),
            line("output.weight", Split::QueryHeads(0)),
            line("norm.weight", Split::ReplicateInSite),
        ];
        assert_eq!(told::<Plain>(), Ok(want.to_vec()));
        // What the fused attention says of itself is what its shapes tell.
        let device = Device::flex();
        let shapes = lines::<FusedAttention>(&config(), &device).unwrap();
        let splits: Vec<Split> = shapes.into_iter().map(|(_, split)| split).collect();
        let [queries, keys, output] =
            [Split::QueryHeads(1), Split::KeyHeads(1), Split::QueryHeads(0)];
        assert_eq!(splits, [queries, keys, keys, output]);
    }

    #[test]
    fn what_cannot_be_split_is_named() {
        assert_eq!(
            told::<Biased>().unwrap_err(),
            "`output.bias` of the attention does not depend on the heads: each rank would add it to the sum"
        );
        assert_eq!(
            told::<Together>().unwrap_err(),
            "`input.weight` of the attention does not hold query heads alone, or key heads alone, in one dim"
        );
        assert_eq!(
            told::<KeysAndValues>().unwrap_err(),
            "`keys.weight` of the attention does not hold query heads alone, or key heads alone, in one dim"
        );
        assert_eq!(
            told::<OneHead>().unwrap_err(),
            "the attention has no parameter that depends on n_heads"
        );
    }
}
