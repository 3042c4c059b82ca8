//! What the CubeCL kernels share: launch shapes, fresh tensors, sums over a cube.
//!
//! But for attention's matrix tier, the kernels keep to what WebGPU promises: at most 8 storage buffers a
//! kernel (7 tensors, and one for shapes and scalars), no subgroup operations, no float atomics, at most 256
//! units and 16 KiB of shared memory a cube. Sums are in f32 and in a fixed order.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::cast;
pub(crate) use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;

/// Units of a cube that works on one row or one block.
pub(crate) const UNITS: usize = 256;

/// Most cubes along one axis of a launch, for every runtime.
const MAX_CUBES: usize = 65_535;

/// A launch of at least `cubes` cubes; those past the end find `CUBE_POS >= cubes` and stop.
pub(crate) fn cubes(cubes: usize) -> CubeCount {
    let x = cubes.clamp(1, MAX_CUBES);
    CubeCount::Static(x as u32, cubes.div_ceil(x).max(1) as u32, 1)
}

/// Most elements of a tensor: kernels count in 32 bits, and a launch has some units past the end.
const MAX_ELEMENTS: usize = u32::MAX as usize - (1 << 25);

/// # Panics
/// If kernels cannot count the elements.
pub(crate) fn assert_countable(elements: usize) {
    assert!(elements <= MAX_ELEMENTS, "a tensor of {elements} elements, over {MAX_ELEMENTS}");
}

/// A launch of one unit for each of `n` elements; units past the end must stop.
pub(crate) fn elementwise(n: usize) -> (CubeCount, CubeDim) {
    assert_countable(n);
    (cubes(n.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32))
}

/// A fresh contiguous tensor on the device of `like`, with undefined contents. (Burn's own `empty` may
/// pad the rows on CUDA.)
pub(crate) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let shape = shape.into();
    assert_countable(shape.num_elements());
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

/// A fresh contiguous tensor of zeros on the device of `like`.
pub(crate) fn zeros(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    into_contiguous(zeros_client(client, device, shape.into(), dtype))
}

/// The tensor, contiguous, as one that a kernel may change in place: itself if no one else holds it,
/// else a copy.
pub(crate) fn owned(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    // Burn's copy may pad the rows on CUDA.
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// Indices as 32-bit integers, which every device has, contiguous.
pub(crate) fn indices(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(if tensor.dtype() == DType::I32 { tensor } else { cast(tensor, DType::I32) })
}

/// The element type of a tensor, as a launch wants it.
pub(crate) fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype())
}

/// The sum of `value` over the units of a cube, the same for all of them. `scratch` has one place a
/// unit; the number of units is a power of two.
#[cube]
pub(crate) fn cube_sum(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS as usize;
    scratch[unit] = value;
    sync_cube();
    let mut width = CUBE_DIM as usize / 2;
    while width > 0 {
        if unit < width {
            let other = scratch[unit + width];
            scratch[unit] += other;
        }
        sync_cube();
        width /= 2;
    }
    let total = scratch[0];
    sync_cube();
    total
}

/// The largest `value` over the units of a cube, as [`cube_sum`] is their sum.
#[cube]
pub(crate) fn cube_max<N: Numeric>(value: N, scratch: &mut Shared<[N]>) -> N {
    let unit = UNIT_POS as usize;
    scratch[unit] = value;
    sync_cube();
    let mut width = CUBE_DIM as usize / 2;
    while width > 0 {
        if unit < width {
            let other = scratch[unit + width];
            scratch[unit] = max(scratch[unit], other);
        }
        sync_cube();
        width /= 2;
    }
    let top = scratch[0];
    sync_cube();
    top
}
