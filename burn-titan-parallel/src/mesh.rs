//! The mesh: ranks arranged along named axes.

use std::fmt;

use thiserror::Error;

/// An axis of the mesh: the first five arrange the ranks, outermost first; the last two are another view of
/// three of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Pipeline stages.
    Pipeline,
    /// Copies of the sharded model.
    DataReplicate,
    /// Shards of parameters, gradients and optimizer state.
    DataShard,
    /// Shards of the sequence.
    Context,
    /// Shards of each matrix product.
    Tensor,
    /// Experts. Borrows the ranks of one copy of a stage, dp_shard x cp x tp: neighbours among them.
    Expert,
    /// Shards of each expert: what `Expert` leaves of dp_shard x cp x tp.
    ExpertShard,
}

impl Axis {
    /// The axes that arrange the ranks, outermost first: neighbours on the last axis are neighbouring ranks.
    pub const ALL: [Axis; 5] =
        [Axis::Pipeline, Axis::DataReplicate, Axis::DataShard, Axis::Context, Axis::Tensor];
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pipeline => "pp",
            Self::DataReplicate => "dp_replicate",
            Self::DataShard => "dp_shard",
            Self::Context => "cp",
            Self::Tensor => "tp",
            Self::Expert => "ep",
            Self::ExpertShard => "ep_shard",
        })
    }
}

/// The degree of each axis as asked for; -1 for `data_shard` takes the ranks that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Degrees {
    /// Pipeline stages.
    pub pipeline: i64,
    /// Copies of the sharded model.
    pub data_replicate: i64,
    /// Shards of the model, or -1.
    pub data_shard: i64,
    /// Shards of the sequence.
    pub context: i64,
    /// Shards of each matrix product.
    pub tensor: i64,
    /// Ranks among which the experts are dealt out; they are borrowed, so the number of ranks is the product of
    /// the others alone.
    pub expert: i64,
}

/// Why no mesh can be built.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MeshError {
    /// A degree below 1 (or -1 where it means nothing).
    #[error("the degree of {axis} is {degree}: expected at least 1{}", if *.axis == Axis::DataShard { ", or -1 for the ranks that are left" } else { "" })]
    Degree {
        /// The axis.
        axis: Axis,
        /// Its degree.
        degree: i64,
    },
    /// The product of the degrees is not the number of ranks.
    #[error(
        "{product} {}, but {started} {} started",
        if .product == "1" { "rank" } else { "ranks" },
        if *.started == 1 { "was" } else { "were" }
    )]
    Product {
        /// The arithmetic, for example `2 x 4 x 2 = 16`.
        product: String,
        /// Ranks that were started.
        started: usize,
    },
    /// The ranks do not divide by the degrees that are given.
    #[error(
        "{} by {product}, so that data_parallel_shard_degree = -1 has no value",
        if *.started == 1 { "1 rank does not divide".to_string() } else { format!("{started} ranks do not divide") }
    )]
    Remainder {
        /// The arithmetic of the other axes.
        product: String,
        /// Ranks that were started.
        started: usize,
    },
    /// The ranks that experts borrow do not divide by their degree.
    #[error(
        "experts are dealt out among the ranks of dp_shard x cp x tp: {borrowed}, which do not divide by expert_parallel_degree = {expert}"
    )]
    Expert {
        /// The arithmetic of the three, for example `4 x 2 = 8`.
        borrowed: String,
        /// The degree.
        expert: usize,
    },
}

/// Ranks along the axes of [`Axis::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    degrees: [usize; 5],
    expert: usize,
}

impl Mesh {
    /// The mesh of `world_size` ranks.
    ///
    /// # Errors
    /// Where the degrees and the number of ranks do not fit, with the arithmetic.
    pub fn new(degrees: Degrees, world_size: usize) -> Result<Self, MeshError> {
        let Degrees { pipeline, data_replicate, data_shard, context, tensor, expert } = degrees;
        let asked = [pipeline, data_replicate, data_shard, context, tensor];
        let each = Axis::ALL.into_iter().zip(asked).chain([(Axis::Expert, expert)]);
        for (axis, degree) in each {
            if degree < 1 && !(axis == Axis::DataShard && degree == -1) {
                return Err(MeshError::Degree { axis, degree });
            }
        }
        let given: Vec<i64> = asked.into_iter().filter(|d| *d > 0).collect();
        let total = given.iter().map(|d| i128::from(*d)).product::<i128>();
        let world = world_size as i128;
        let shard = if data_shard != -1 {
            if total != world {
                return Err(MeshError::Product {
                    product: arithmetic(&given, total),
                    started: world_size,
                });
            }
            data_shard
        } else {
            if total > world || world % total != 0 {
                return Err(MeshError::Remainder {
                    product: arithmetic(&given, total),
                    started: world_size,
                });
            }
            (world / total) as i64
        };
        let borrowed = [shard, context, tensor];
        let block = borrowed.iter().product::<i64>();
        if block % expert != 0 {
            let borrowed = arithmetic(&borrowed, block.into());
            return Err(MeshError::Expert { borrowed, expert: expert as usize });
        }
        let degrees = [pipeline, data_replicate, shard, context, tensor].map(|d| d as usize);
        Ok(Self { degrees, expert: expert as usize })
    }

    /// Ranks of the mesh.
    pub fn world_size(&self) -> usize {
        self.degrees.iter().product()
    }

    /// Ranks along an axis.
    pub fn degree(&self, axis: Axis) -> usize {
        match axis {
            Axis::Expert => self.expert,
            Axis::ExpertShard => self.stride(Axis::DataReplicate) / self.expert,
            axis => self.degrees[axis as usize],
        }
    }

    /// Where a rank is along an axis.
    pub fn coordinate(&self, rank: usize, axis: Axis) -> usize {
        rank / self.stride(axis) % self.degree(axis)
    }

    /// The ranks that differ from `rank` only along `axis`, in order, itself included.
    pub fn group(&self, rank: usize, axis: Axis) -> Vec<usize> {
        let (first, stride) = (self.first(rank, axis), self.stride(axis));
        (0..self.degree(axis)).map(|i| first + i * stride).collect()
    }

    /// The ranks that steps along `axes` lead to from `rank`, in order, itself included: those that differ
    /// from it only along these. The global norm of the gradients, for example, sums over all axes but
    /// `DataReplicate`.
    pub fn group_of(&self, rank: usize, axes: &[Axis]) -> Vec<usize> {
        let mut reached = vec![rank];
        loop {
            let before = reached.len();
            for axis in axes {
                reached = reached.iter().flat_map(|rank| self.group(*rank, *axis)).collect();
                reached.sort_unstable();
                reached.dedup();
            }
            // Axes of different views lead on to each other's.
            if reached.len() == before {
                return reached;
            }
        }
    }

    /// The first rank of [`Mesh::group`].
    pub fn first(&self, rank: usize, axis: Axis) -> usize {
        rank - self.coordinate(rank, axis) * self.stride(axis)
    }

    /// Ranks that read different samples: copies times shards.
    pub fn data_parallel(&self) -> usize {
        self.degree(Axis::DataReplicate) * self.degree(Axis::DataShard)
    }

    /// A rank's place among those that read different samples.
    pub fn data_rank(&self, rank: usize) -> usize {
        self.coordinate(rank, Axis::DataReplicate) * self.degree(Axis::DataShard)
            + self.coordinate(rank, Axis::DataShard)
    }

    /// Ranks from a rank to its next neighbour along an axis.
    pub fn stride(&self, axis: Axis) -> usize {
        match axis {
            Axis::Expert => 1,
            Axis::ExpertShard => self.expert,
            axis => self.degrees[axis as usize + 1..].iter().product(),
        }
    }
}

/// `2 x 4 = 8`, without the ones, or `1`.
fn arithmetic(degrees: &[i64], total: i128) -> String {
    let factors: Vec<String> =
        degrees.iter().filter(|d| **d != 1).map(ToString::to_string).collect();
    if factors.len() < 2 { total.to_string() } else { format!("{} = {total}", factors.join(" x ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn degrees(d: [i64; 5]) -> Degrees {
        Degrees {
            pipeline: d[0],
            data_replicate: d[1],
            data_shard: d[2],
            context: d[3],
            tensor: d[4],
            expert: 1,
        }
    }

    #[test]
    fn infers_and_refuses() {
        assert_eq!(Mesh::new(degrees([1, 2, -1, 1, 2]), 16).unwrap().degree(Axis::DataShard), 4);
        let message = |d, world| Mesh::new(degrees(d), world).unwrap_err().to_string();
        assert_eq!(message([2, 1, 4, 1, 2], 8), "2 x 4 x 2 = 16 ranks, but 8 were started");
        assert_eq!(message([1, 1, 4, 1, 1], 1), "4 ranks, but 1 was started");
        assert_eq!(
            message([1, 3, -1, 1, 1], 8),
            "8 ranks do not divide by 3, so that data_parallel_shard_degree = -1 has no value"
        );
        assert_eq!(
            message([1, 0, 1, 1, 1], 1),
            "the degree of dp_replicate is 0: expected at least 1"
        );
        assert_eq!(
            message([1, 1, -2, 1, 1], 1),
            "the degree of dp_shard is -2: expected at least 1, or -1 for the ranks that are left"
        );
        assert_eq!(message([1, 1, 1, 1, 1], 2), "1 rank, but 2 were started");
        assert!(Mesh::new(degrees([i64::MAX, i64::MAX, -1, 1, 1]), 8).is_err());
    }

    #[test]
    fn experts_borrow_the_ranks_of_a_copy() {
        let of = |d, expert, world| Mesh::new(Degrees { expert, ..degrees(d) }, world);
        let message = |d, expert, world| of(d, expert, world).unwrap_err().to_string();
        assert_eq!(
            message([1, 2, -1, 1, 2], 3, 16),
            "experts are dealt out among the ranks of dp_shard x cp x tp: 4 x 2 = 8, which do not \
             divide by expert_parallel_degree = 3"
        );
        assert_eq!(message([1, 1, 1, 1, 1], 0, 1), "the degree of ep is 0: expected at least 1");
        // Two copies of eight ranks, of which four hold all experts between them.
        let mesh = of([1, 2, 4, 1, 2], 4, 16).unwrap();
        assert_eq!((mesh.degree(Axis::Expert), mesh.degree(Axis::ExpertShard)), (4, 2));
        assert_eq!(mesh.group(9, Axis::Expert), [8, 9, 10, 11]);
        assert_eq!(mesh.group(9, Axis::ExpertShard), [9, 13]);
        for rank in 0..16 {
            let [experts, borrowed] = [
                &[Axis::Expert, Axis::ExpertShard][..],
                &[Axis::DataShard, Axis::Context, Axis::Tensor],
            ]
            .map(|axes| mesh.group_of(rank, axes));
            assert_eq!(experts, borrowed);
            assert_eq!(experts, Vec::from_iter(rank / 8 * 8..rank / 8 * 8 + 8));
        }
    }

    #[test]
    fn groups_over_several_axes() {
        let mesh = Mesh::new(degrees([2, 2, 3, 1, 2]), 24).unwrap();
        let all = Vec::from_iter(0..24);
        assert_eq!(mesh.group_of(5, &[]), [5]);
        assert_eq!(mesh.group_of(5, &Axis::ALL), all);
        assert_eq!(mesh.group_of(2, &[Axis::Tensor]), mesh.group(2, Axis::Tensor));
        assert_eq!(mesh.group_of(1, &[Axis::DataShard, Axis::DataReplicate]), [1, 3, 5, 7, 9, 11]);
        let norm = [Axis::Tensor, Axis::Pipeline, Axis::DataShard, Axis::Context];
        for rank in 0..24 {
            let group = mesh.group_of(rank, &norm);
            let copy = |rank| mesh.coordinate(rank, Axis::DataReplicate);
            assert_eq!(
                group,
                Vec::from_iter(all.iter().copied().filter(|r| copy(*r) == copy(rank)))
            );
        }
        // ep_shard of 6 / 2 = 3 leaps over tp, which leads to the ranks between.
        let mesh = Mesh { expert: 2, ..mesh };
        assert_eq!(mesh.group_of(0, &[Axis::ExpertShard, Axis::Tensor]), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn groups_partition_the_ranks() {
        let mesh = Mesh::new(degrees([2, 1, 3, 1, 2]), 12).unwrap();
        for axis in Axis::ALL {
            for rank in 0..12 {
                let group = mesh.group(rank, axis);
                assert_eq!(group.len(), mesh.degree(axis));
                assert_eq!(group[mesh.coordinate(rank, axis)], rank);
                assert_eq!(group[0], mesh.first(rank, axis));
                assert!(group.iter().all(|other| mesh.group(*other, axis) == group));
            }
        }
        assert_eq!(mesh.group(0, Axis::Tensor), [0, 1]);
        assert_eq!(mesh.group(1, Axis::DataShard), [1, 3, 5]);
    }
}
