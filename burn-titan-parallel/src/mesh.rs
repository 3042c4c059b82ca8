//! The mesh: ranks arranged along named axes.

use std::fmt;

use thiserror::Error;

/// An axis of the mesh, outermost first.
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
}

impl Axis {
    /// All axes, outermost first: neighbours on the last axis are neighbouring ranks.
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
    #[error("{product} ranks, but {started} {} started", if *.started == 1 { "was" } else { "were" })]
    Product {
        /// The arithmetic, for example `2 x 4 x 2 = 16`.
        product: String,
        /// Ranks that were started.
        started: usize,
    },
    /// The ranks do not divide by the degrees that are given.
    #[error(
        "{started} ranks do not divide by {product}, so that data_parallel_shard_degree = -1 has no value"
    )]
    Remainder {
        /// The arithmetic of the other axes.
        product: String,
        /// Ranks that were started.
        started: usize,
    },
}

/// Ranks along the axes of [`Axis::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    degrees: [usize; 5],
}

impl Mesh {
    /// The mesh of `world_size` ranks.
    ///
    /// # Errors
    /// Where the degrees and the number of ranks do not fit, with the arithmetic.
    pub fn new(degrees: Degrees, world_size: usize) -> Result<Self, MeshError> {
        let Degrees { pipeline, data_replicate, data_shard, context, tensor } = degrees;
        let asked = [pipeline, data_replicate, data_shard, context, tensor];
        for (axis, degree) in Axis::ALL.into_iter().zip(asked) {
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
        Ok(Self { degrees: [pipeline, data_replicate, shard, context, tensor].map(|d| d as usize) })
    }

    /// Ranks of the mesh.
    pub fn world_size(&self) -> usize {
        self.degrees.iter().product()
    }

    /// Ranks along an axis.
    pub fn degree(&self, axis: Axis) -> usize {
        self.degrees[axis as usize]
    }

    /// Where a rank is along an axis.
    pub fn coordinate(&self, rank: usize, axis: Axis) -> usize {
        rank / self.stride(axis) % self.degree(axis)
    }

    /// The ranks that differ from `rank` only along `axis`, in order, itself included.
    pub fn group(&self, rank: usize, axis: Axis) -> Vec<usize> {
        let stride = self.stride(axis);
        let first = rank - self.coordinate(rank, axis) * stride;
        (0..self.degree(axis)).map(|i| first + i * stride).collect()
    }

    /// Ranks that read different samples: copies times shards.
    pub fn data_parallel(&self) -> usize {
        self.degree(Axis::DataReplicate) * self.degree(Axis::DataShard)
    }

    fn stride(&self, axis: Axis) -> usize {
        self.degrees[axis as usize + 1..].iter().product()
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
        assert!(Mesh::new(degrees([i64::MAX, i64::MAX, -1, 1, 1]), 8).is_err());
    }

    #[test]
    fn groups_partition_the_ranks() {
        let mesh = Mesh::new(degrees([2, 1, 3, 1, 2]), 12).unwrap();
        for axis in Axis::ALL {
            for rank in 0..12 {
                let group = mesh.group(rank, axis);
                assert_eq!(group.len(), mesh.degree(axis));
                assert_eq!(group[mesh.coordinate(rank, axis)], rank);
                assert!(group.iter().all(|other| mesh.group(*other, axis) == group));
            }
        }
        assert_eq!(mesh.group(0, Axis::Tensor), [0, 1]);
        assert_eq!(mesh.group(1, Axis::DataShard), [1, 3, 5]);
    }
}
