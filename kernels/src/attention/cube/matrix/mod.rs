//! Attention with matrix units, in f16 and bf16 with f32 sums.
//!
//! Each plane of a cube owns 16 rows, of queries or (for `dK` and `dV`) of keys, and the cube walks over
//! tiles of the other side: FlashAttention-2's schedule (Dao, 2023). All products are of 16 x 16 x 16
//! blocks in shared memory (`strip.rs`). Weights `P`, and `dS`, are rounded to the inputs' type, as those
//! products want it; all else is in f32. Sums are in a fixed order. Unlike the plain kernels, these size
//! themselves by the shared memory that the device has.

mod backward;
mod forward;
mod strip;
mod tile;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::features::{MmaConfig, Plane};
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::tier::{Tier, current};
use super::{Problem, readable};
use crate::cube::{cubes, element, empty, into_contiguous};
use strip::{BLOCK, PLANE, SHARE};
use tile::Plan;

/// Largest `head_dim`: beyond it the strips of `dK` and `dV` do not fit into registers.
const MAX_HEAD_DIM: usize = 128;

/// How much a score may exceed the reference of its row before the forward rescales: weights stay below
/// 2^8, far from the largest f16, 2^16.
const PATIENCE: f32 = 5.5;

/// Planes of a cube and rows of a tile, the best first. The backward leaves out the first, for which
/// its registers do not suffice.
const SHAPES: [[usize; 2]; 5] = [[4, 64], [4, 32], [2, 32], [2, 16], [1, 16]];

/// What the kernels of one problem have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    emulated: bool,
    patience: f32,
    /// Elements read and written at once.
    vector: usize,
    shared_memory: usize,
    head_dim: usize,
}

impl Matrix {
    /// None where the plain kernels must do it.
    pub(super) fn choose(query: &CubeTensor) -> Option<Self> {
        let head_dim = query.shape()[3];
        let half = matches!(query.dtype(), DType::F16 | DType::BF16);
        if !half || head_dim == 0 || !head_dim.is_multiple_of(BLOCK) || head_dim > MAX_HEAD_DIM {
            return None;
        }
        let properties = query.client.properties();
        let (emulated, patience) = match current() {
            Tier::Plain => return None,
            Tier::Emulated { patience } => (true, patience),
            Tier::Fastest if has_matrix_units(query) => (false, PATIENCE),
            Tier::Fastest => return None,
        };
        let vector =
            properties.io_optimized_vector_sizes(2).find(|size| SHARE.is_multiple_of(*size))?;
        let shared_memory = properties.hardware.max_shared_memory_size;
        Some(Self { emulated, patience, vector, shared_memory, head_dim })
    }

    /// The best of `shapes` for a kernel that keeps `kept` tensors' rows in shared memory for all of its
    /// life, and tiles of two more. On real matrix units a cube takes half of the memory at most, if it can,
    /// so that one computes while another loads.
    fn plan(&self, kept: usize, shapes: &[[usize; 2]]) -> Option<Plan> {
        let plan = |&[planes, tile]: &[usize; 2]| Plan {
            planes,
            tile,
            head_dim: self.head_dim,
            emulated: self.emulated,
        };
        let fits = |limit| shapes.iter().map(plan).find(|plan| bytes(plan, kept) <= limit);
        let shared = if self.emulated { None } else { fits(self.shared_memory / 2) };
        let plan = shared.or_else(|| fits(self.shared_memory));
        assert!(
            plan.is_some() || !self.emulated,
            "no shared memory for the tier that was asked for"
        );
        plan
    }

    /// As the kernels read it: rows of whole vectors, each at a multiple of its size.
    fn readable(&self, tensor: CubeTensor) -> CubeTensor {
        let tensor = readable(tensor);
        let (shape, strides) = (tensor.shape(), tensor.meta.strides());
        let whole = (0..3).all(|dim| shape[dim] == 1 || strides[dim].is_multiple_of(self.vector));
        if whole { tensor } else { into_contiguous(tensor) }
    }
}

/// Bytes of shared memory that a kernel which keeps `kept` tensors' rows needs at most.
fn bytes(plan: &Plan, kept: usize) -> usize {
    let heads = 2 * (kept * plan.rows() + 2 * plan.tile) * plan.head_pitch();
    let scores = plan.rows() * (2 * plan.weight_pitch() + 4 * plan.score_pitch());
    // What a kernel knows of queries, and a place or two for each unit.
    let small = 16 * plan.rows().max(plan.tile) + 8 * plan.units();
    heads + scores + small
}

/// Whether planes of 32 units have matrix units for the dtype, with sums in f32.
fn has_matrix_units(tensor: &CubeTensor) -> bool {
    let properties = tensor.client.properties();
    let (features, hardware) = (&properties.features, &properties.hardware);
    let size = BLOCK as u32;
    let product = MmaConfig {
        a_type: element(tensor),
        b_type: element(tensor),
        cd_type: ElemType::Float(FloatKind::F32),
        m: size,
        n: size,
        k: size,
    };
    features.matmul.cmma.contains(&product)
        && features.plane.contains(Plane::Ops)
        && features.plane.contains(Plane::Sync)
        && features.alignment
        && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
}

/// A cube of `plan` for every tile of `rows` rows of `heads` heads.
fn launch(plan: &Plan, rows: usize, heads: usize) -> (usize, CubeDim) {
    let count = rows.div_ceil(plan.rows()) * heads;
    (count, CubeDim::new_2d(PLANE as u32, plan.planes as u32))
}

impl Problem {
    /// What [`Problem::forward`] returns; none where these kernels do not fit.
    pub(super) fn matrix_forward(&self) -> Option<(CubeTensor, CubeTensor)> {
        let matrix = Matrix::choose(&self.query)?;
        let plan = matrix.plan(1, &SHAPES)?;
        let output = self.rows_like(&self.query, self.heads, self.queries);
        let log_sum_exp = empty(&self.query, [self.batch, self.heads, self.queries], DType::F32);
        let (count, units) = launch(&plan, self.queries, self.heads * self.batch);
        if count > 0 {
            forward::kernel::forward::launch(
                &output.client,
                cubes(count),
                units,
                matrix.vector,
                matrix.readable(self.query.clone()).into_tensor_arg(),
                matrix.readable(self.key.clone()).into_tensor_arg(),
                matrix.readable(self.value.clone()).into_tensor_arg(),
                self.visible.clone().into_tensor_arg(),
                output.clone().into_tensor_arg(),
                log_sum_exp.clone().into_tensor_arg(),
                count,
                self.scores.scale,
                self.scores.softcap.unwrap_or(0.0),
                matrix.patience,
                f32::NEG_INFINITY,
                plan,
                self.scores.softcap.is_some(),
                element(&self.query),
            );
        }
        Some((output, log_sum_exp))
    }

    /// The gradients of the query, and of key and value in one tensor `[2, batch, kv_heads, keys, head_dim]`;
    /// none where these kernels do not fit.
    pub(super) fn matrix_backward(
        &self,
        gradient: &CubeTensor,
        statistics: &CubeTensor,
    ) -> Option<(CubeTensor, CubeTensor)> {
        let Self { batch, heads, kv_heads, queries, keys, head_dim, scores, .. } = *self;
        let matrix = Matrix::choose(&self.query)?;
        let plan = matrix.plan(2, &SHAPES[1..])?;
        let d_query = self.rows_like(&self.query, heads, queries);
        let d_both = empty(&self.key, [2, batch, kv_heads, keys, head_dim], self.key.dtype());
        let (cap, capped) = (scores.softcap.unwrap_or(0.0), scores.softcap.is_some());
        let inputs = [&self.query, &self.key, &self.value, gradient];
        let [query, key, value, gradient] = inputs.map(|x| matrix.readable(x.clone()));
        let (count, units) = launch(&plan, queries, heads * batch);
        if count > 0 {
            backward::kernel::query_gradient::launch(
                &d_query.client,
                cubes(count),
                units,
                matrix.vector,
                query.clone().into_tensor_arg(),
                key.clone().into_tensor_arg(),
                value.clone().into_tensor_arg(),
                gradient.clone().into_tensor_arg(),
                self.visible.clone().into_tensor_arg(),
                statistics.clone().into_tensor_arg(),
                d_query.clone().into_tensor_arg(),
                count,
                scores.scale,
                cap,
                plan,
                capped,
                element(&self.query),
            );
        }
        let (count, units) = launch(&plan, keys, kv_heads * batch);
        if count > 0 {
            backward::kernel::key_value_gradient::launch(
                &d_query.client,
                cubes(count),
                units,
                matrix.vector,
                query.into_tensor_arg(),
                key.into_tensor_arg(),
                value.into_tensor_arg(),
                gradient.into_tensor_arg(),
                self.visible.clone().into_tensor_arg(),
                statistics.clone().into_tensor_arg(),
                d_both.clone().into_tensor_arg(),
                count,
                scores.scale,
                cap,
                plan,
                capped,
                element(&self.query),
            );
        }
        Some((d_query, d_both))
    }
}
