//! How a model's parameters lie on the ranks of the axis `tp`: data, that goes with the model.

use std::ops::Range;

use burn_titan_parallel::placement::shard_range;
use thiserror::Error;

use super::unit::ParameterSpec;
use crate::config::NamePattern;

/// How a parameter lies on the ranks of `tp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Whole on every rank, and used on the residual stream, outside of sites: a norm's weight.
    Replicate,
    /// Whole on every rank, and used inside a site, with a share of the heads: each rank's gradient is a summand.
    ReplicateInSite,
    /// Each rank has a range of this dim ([`shard_range`]).
    Shard(usize),
    /// Each rank has some query heads, which lie one after the other in this dim.
    QueryHeads(usize),
    /// Each rank has the key heads that its query heads meet, which lie one after the other in this dim. Where there
    /// are more ranks than key heads, several have the same one, and each rank's gradient is a summand.
    KeyHeads(usize),
}

/// The heads of a model's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key heads, each of which serves equally many query heads.
    pub key: usize,
}

/// A rank's heads.
struct HeadShare {
    query: Range<usize>,
    key: Range<usize>,
    /// The ranks that have the same key heads.
    holders: Range<usize>,
}

/// A pattern of parameter names ([`NamePattern`]), and how those that it matches are split.
pub type Line = (String, Split);

/// How the parameters of a model are split: the lines of the plan, exactly one of which matches each parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// The lines.
    pub lines: Vec<Line>,
    /// The heads that lines are about.
    pub heads: Heads,
}

/// A rank of the axis `tp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorRank {
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks of the axis.
    pub ranks: usize,
    /// Whether each rank has a share of the tokens of the residual stream (sequence parallelism).
    pub sequence: bool,
}

impl TensorRank {
    /// There is no other rank.
    pub const ALONE: Self = Self { rank: 0, ranks: 1, sequence: false };
}

/// The part of a parameter that a rank of `tp` has: a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Where it begins in each dim.
    pub start: Vec<usize>,
    /// Its dims.
    pub shape: Vec<usize>,
    /// The ranks of the axis that have the same part.
    pub holders: Range<usize>,
    /// Whether the gradient of each of these is a summand; else it is the same on all of them.
    pub partial: bool,
}

impl Cut {
    /// All of a parameter, where no rank shares it.
    pub fn whole(shape: &[usize]) -> Self {
        Self { start: vec![0; shape.len()], shape: shape.to_vec(), holders: 0..1, partial: false }
    }

    /// Its elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What is wrong with a plan, or with the number of ranks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The model has no plan.
    #[error("the model has no plan of how its parameters are split")]
    None,
    /// A line's pattern is malformed.
    #[error("the line `{pattern}` of the model's plan: {cause}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        cause: String,
    },
    /// No line is about a parameter.
    #[error("`{name}` is matched by no line of the model's plan")]
    NoLine {
        /// The parameter.
        name: String,
    },
    /// Two lines are about a parameter.
    #[error("`{name}` is matched by two lines of the model's plan: `{first}` and `{second}`")]
    TwoLines {
        /// The parameter.
        name: String,
        /// The first pattern.
        first: String,
        /// The second.
        second: String,
    },
    /// A line names a dim that the parameter has not.
    #[error("`{name}` has {dims} dims, and the model's plan splits dim {dim}")]
    NoDim {
        /// The parameter.
        name: String,
        /// Its dims.
        dims: usize,
        /// The dim of the line.
        dim: usize,
    },
    /// A dim is too short for the ranks.
    #[error("`{name}` has {length} indices in dim {dim}: too few for {ranks} ranks")]
    TooShort {
        /// The parameter.
        name: String,
        /// The dim.
        dim: usize,
        /// Its length.
        length: usize,
        /// Ranks of the axis.
        ranks: usize,
    },
    /// A dim does not hold heads.
    #[error("`{name}` has {length} indices in dim {dim}: not a multiple of its {heads} heads")]
    NotHeads {
        /// The parameter.
        name: String,
        /// The dim.
        dim: usize,
        /// Its length.
        length: usize,
        /// The heads.
        heads: usize,
    },
    /// There are more ranks than query heads.
    #[error("`{name}` has {heads} heads, which cannot be split over {ranks} ranks")]
    FewHeads {
        /// The parameter.
        name: String,
        /// The query heads.
        heads: usize,
        /// Ranks of the axis.
        ranks: usize,
    },
    /// Experts that cannot be dealt out evenly.
    #[error("`{name}` has {experts} experts, which do not divide by {ranks} ranks")]
    Experts {
        /// The parameter.
        name: String,
        /// Its experts.
        experts: usize,
        /// Ranks of `ep`.
        ranks: usize,
    },
    /// An attention whose parameters do not say how its heads lie in them.
    #[error("{}the attention {cause}", .name.as_ref().map_or(String::new(), |name| format!("`{name}` of ")))]
    Attention {
        /// The parameter that is in the way.
        name: Option<String>,
        /// Why it cannot be split.
        cause: String,
    },
}

impl TensorPlan {
    /// The part of each parameter that a rank has, in their order.
    ///
    /// # Errors
    /// What is wrong with the plan for these parameters, or with the number of ranks.
    pub fn cuts(
        &self,
        parameters: &[ParameterSpec],
        tensor: TensorRank,
    ) -> Result<Vec<Cut>, PlanError> {
        let patterns = self.lines.iter().map(|(pattern, split)| {
            let parsed = NamePattern::parse(pattern);
            let wrong =
                |e| PlanError::Pattern { pattern: pattern.clone(), cause: format!("it {e}") };
            Ok((pattern, parsed.map_err(|e| wrong(e.reason))?, *split))
        });
        let patterns: Vec<_> = patterns.collect::<Result<_, _>>()?;
        let split = |spec: &ParameterSpec| {
            let name = || spec.name.clone();
            let mut lines = patterns.iter().filter(|(_, pattern, _)| pattern.matches(&spec.name));
            let (first, _, split) =
                lines.next().ok_or_else(|| PlanError::NoLine { name: name() })?;
            if let Some((second, ..)) = lines.next() {
                let (first, second) = ((*first).clone(), (*second).clone());
                return Err(PlanError::TwoLines { name: name(), first, second });
            }
            self.cut(spec, *split, tensor)
        };
        parameters.iter().map(split).collect()
    }

    /// A rank's part of a parameter.
    fn cut(
        &self,
        spec: &ParameterSpec,
        split: Split,
        tensor: TensorRank,
    ) -> Result<Cut, PlanError> {
        let TensorRank { rank, ranks, sequence } = tensor;
        if ranks == 1 {
            return Ok(Cut::whole(&spec.shape));
        }
        let whole = Cut { holders: 0..ranks, ..Cut::whole(&spec.shape) };
        let (dim, range, holders) = match split {
            Split::Replicate => return Ok(Cut { partial: sequence, ..whole }),
            Split::ReplicateInSite => return Ok(Cut { partial: true, ..whole }),
            Split::Shard(dim) => {
                let length = length(spec, dim)?;
                if length < ranks {
                    let name = spec.name.clone();
                    return Err(PlanError::TooShort { name, dim, length, ranks });
                }
                (dim, shard_range(length, ranks, rank), rank..rank + 1)
            }
            Split::QueryHeads(dim) => {
                let share = self.heads.share(&spec.name, tensor)?;
                (dim, scaled(spec, dim, self.heads.query, share.query)?, rank..rank + 1)
            }
            Split::KeyHeads(dim) => {
                let share = self.heads.share(&spec.name, tensor)?;
                (dim, scaled(spec, dim, self.heads.key, share.key)?, share.holders)
            }
        };
        let mut cut = Cut { partial: holders.len() > 1, holders, ..whole };
        cut.start[dim] = range.start;
        cut.shape[dim] = range.len();
        Ok(cut)
    }
}

impl Heads {
    /// The heads of a rank: whole groups of a key head with its query heads, as long as there are enough.
    fn share(&self, name: &str, tensor: TensorRank) -> Result<HeadShare, PlanError> {
        let TensorRank { rank, ranks, .. } = tensor;
        if ranks > self.query {
            let (name, heads) = (name.to_string(), self.query);
            return Err(PlanError::FewHeads { name, heads, ranks });
        }
        let group = self.query / self.key;
        if ranks <= self.key {
            let key = shard_range(self.key, ranks, rank);
            let query = key.start * group..key.end * group;
            return Ok(HeadShare { query, key, holders: rank..rank + 1 });
        }
        let holders = |key: &usize| shard_range(ranks, self.key, *key);
        // Every rank holds one: the ranges tile the ranks.
        let key = (0..self.key).find(|key| holders(key).contains(&rank)).unwrap_or(0);
        let holders = holders(&key);
        let query = shard_range(group, holders.len(), rank - holders.start);
        let query = key * group + query.start..key * group + query.end;
        Ok(HeadShare { query, key: key..key + 1, holders })
    }
}

fn length(spec: &ParameterSpec, dim: usize) -> Result<usize, PlanError> {
    let (name, dims) = (|| spec.name.clone(), spec.shape.len());
    spec.shape.get(dim).copied().ok_or_else(|| PlanError::NoDim { name: name(), dims, dim })
}

/// Heads as indices of a dim that holds `heads` of them.
fn scaled(
    spec: &ParameterSpec,
    dim: usize,
    heads: usize,
    share: Range<usize>,
) -> Result<Range<usize>, PlanError> {
    let length = length(spec, dim)?;
    if length == 0 || !length.is_multiple_of(heads) {
        return Err(PlanError::NotHeads { name: spec.name.clone(), dim, length, heads });
    }
    let width = length / heads;
    Ok(share.start * width..share.end * width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[usize]) -> ParameterSpec {
        ParameterSpec { name: name.into(), shape: shape.to_vec() }
    }

    fn plan(lines: &[(&str, Split)], query: usize, key: usize) -> TensorPlan {
        let lines = lines.iter().map(|(pattern, split)| (pattern.to_string(), *split)).collect();
        TensorPlan { lines, heads: Heads { query, key } }
    }

    const LINES: [(&str, Split); 4] = [
        ("wq", Split::QueryHeads(1)),
        ("wk", Split::KeyHeads(1)),
        ("w1", Split::Shard(0)),
        ("norm", Split::Replicate),
    ];

    fn cuts(query: usize, key: usize, ranks: usize) -> Vec<Vec<Cut>> {
        let parameters = [
            spec("wq", &[7, query * 4]),
            spec("wk", &[7, key * 4]),
            spec("w1", &[331, 7]),
            spec("norm", &[7]),
        ];
        let tensor = |rank| TensorRank { rank, ranks, sequence: true };
        let plan = plan(&LINES, query, key);
        (0..ranks).map(|rank| plan.cuts(&parameters, tensor(rank)).unwrap()).collect()
    }

    /// Every query head is on one rank, with the key head that it meets, and every rank has the same number of query
    /// heads for each of its key heads.
    #[test]
    fn heads_stay_with_their_key_heads() {
        for (query, key) in [(10, 5), (8, 2), (12, 3), (4, 1), (6, 6)] {
            for ranks in 1..=query {
                let mut next = 0;
                for cut in cuts(query, key, ranks) {
                    let [q, k] = [&cut[0], &cut[1]].map(|cut| {
                        let heads = cut.start[1] / 4..(cut.start[1] + cut.shape[1]) / 4;
                        assert!(!heads.is_empty() && cut.shape == [7, heads.len() * 4]);
                        heads
                    });
                    assert_eq!(q.start, next);
                    next = q.end;
                    assert_eq!(q.len() % k.len(), 0, "{q:?} {k:?}");
                    let local = q.len() / k.len();
                    for (i, head) in q.enumerate() {
                        assert_eq!(k.start + i / local, head / (query / key), "{ranks} ranks");
                    }
                }
                assert_eq!(next, query);
            }
        }
    }

    #[test]
    fn who_holds_the_same_is_known() {
        let cuts = cuts(8, 2, 4);
        let holders: Vec<_> =
            cuts.iter().map(|cut| (cut[1].holders.clone(), cut[1].partial)).collect();
        assert_eq!(holders, [(0..2, true), (0..2, true), (2..4, true), (2..4, true)]);
        assert_eq!((cuts[3][2].start[0], cuts[3][2].shape[0]), (249, 82));
        assert_eq!((cuts[1][2].holders.clone(), cuts[1][2].partial), (1..2, false));
        assert_eq!((cuts[1][3].holders.clone(), cuts[1][3].partial), (0..4, true));
    }

    #[test]
    fn wrong_plans_are_refused_by_name() {
        let refused = |lines: &[(&str, Split)], spec: ParameterSpec, ranks| {
            let tensor = TensorRank { rank: 0, ranks, sequence: false };
            plan(lines, 4, 2).cuts(&[spec], tensor).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&LINES, spec("wo", &[3]), 2),
            "`wo` is matched by no line of the model's plan"
        );
        assert_eq!(
            refused(&[LINES[0], ("w*", Split::Replicate)], spec("wq", &[3, 4]), 2),
            "`wq` is matched by two lines of the model's plan: `wq` and `w*`"
        );
        assert_eq!(
            refused(&LINES, spec("wq", &[3, 8]), 8),
            "`wq` has 4 heads, which cannot be split over 8 ranks"
        );
        assert_eq!(
            refused(&LINES, spec("wk", &[3, 7]), 2),
            "`wk` has 7 indices in dim 1: not a multiple of its 2 heads"
        );
        assert_eq!(
            refused(&LINES, spec("wk", &[8]), 2),
            "`wk` has 1 dims, and the model's plan splits dim 1"
        );
        assert_eq!(
            refused(&LINES, spec("w1", &[3, 7]), 4),
            "`w1` has 3 indices in dim 0: too few for 4 ranks"
        );
        assert_eq!(
            refused(&[("a{", Split::Replicate)], spec("a", &[1]), 2),
            "the line `a{` of the model's plan: it has a `{` without a `}`"
        );
    }
}
