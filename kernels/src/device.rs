//! Opening devices, with a clear error where one is not to be had, and asking what they are.

use std::time::Instant;

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::flex::simd_fn;

/// Why a device cannot be used. The message names the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceError(String);

impl DeviceError {
    #[cfg(feature = "cuda")]
    pub(crate) fn new(message: String) -> Self {
        Self(message)
    }
}

impl std::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DeviceError {}

/// The CPU, by native code.
pub fn flex() -> Device {
    Device::flex()
}

/// A WebGPU adapter: the one that `CUBECL_WGPU_DEFAULT_DEVICE` names (`DiscreteGpu(0)`, `Cpu` and so
/// on, as CubeCL spells them), else the first of the strongest kind there is. A software adapter such as
/// Mesa's lavapipe is taken where there is no other.
///
/// # Errors
/// If the build has no wgpu, the machine no adapter, or the variable names none of them.
#[cfg(feature = "wgpu")]
pub fn wgpu() -> Result<Device, DeviceError> {
    use burn::tensor::DeviceType;
    use burn_cubecl::CubeDevice;
    #[cfg(feature = "tuned")]
    keep_compiled_kernels();
    let (devices, kinds): (Vec<Device>, Vec<_>) = Device::enumerate(DeviceType::Wgpu)
        .into_iter()
        .filter_map(|device| match device.as_dispatch() {
            DispatchDevice::Cube(CubeDevice::Wgpu(adapter)) => {
                let kind = adapter.kind.clone();
                Some((device, kind))
            }
            _ => None,
        })
        .unzip();
    let wanted = std::env::var(adapter::VARIABLE).ok();
    Ok(devices[adapter::choose(&kinds, wanted.as_deref())?].clone())
}

/// Choosing among the adapters of a machine.
#[cfg(feature = "wgpu")]
mod adapter {
    use burn_cubecl::cubecl::wgpu::WgpuDeviceKind;

    use super::DeviceError;

    /// Names the adapter to take.
    pub(super) const VARIABLE: &str = "CUBECL_WGPU_DEFAULT_DEVICE";

    /// Index of the adapter to take.
    pub(super) fn choose(
        adapters: &[WgpuDeviceKind],
        wanted: Option<&str>,
    ) -> Result<usize, DeviceError> {
        let Some(best) = (0..adapters.len()).min_by_key(|i| rank(&adapters[*i])) else {
            return Err(DeviceError(
                "no wgpu adapter was found: install a Vulkan driver for the GPU, or a software one \
                 (`apt-get install mesa-vulkan-drivers`), or use the device `flex`"
                    .into(),
            ));
        };
        let Some(wanted) = wanted else { return Ok(best) };
        let names: Vec<String> = adapters.iter().map(|kind| format!("{kind:?}")).collect();
        names.iter().position(|name| name == wanted).ok_or_else(|| {
            DeviceError(format!(
                "{VARIABLE} is `{wanted}`, but the adapters of this machine are {}: set it to one \
                 of them, or unset it",
                names.join(", ")
            ))
        })
    }

    fn rank(kind: &WgpuDeviceKind) -> usize {
        match kind {
            WgpuDeviceKind::DiscreteGpu(_) => 0,
            WgpuDeviceKind::IntegratedGpu(_) => 1,
            WgpuDeviceKind::VirtualGpu(_) => 2,
            WgpuDeviceKind::Cpu => 4,
            _ => 3,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_strongest_adapter_or_the_named_one() {
            use WgpuDeviceKind::{Cpu, DiscreteGpu, IntegratedGpu};
            let all = [Cpu, IntegratedGpu(0), DiscreteGpu(0), DiscreteGpu(1)];
            assert_eq!(choose(&all, None), Ok(2));
            assert_eq!(choose(&all[..2], None), Ok(1));
            assert_eq!(choose(&[Cpu], None), Ok(0));
            assert_eq!(choose(&all, Some("Cpu")), Ok(0));
            assert_eq!(choose(&all, Some("DiscreteGpu(1)")), Ok(3));
            assert_eq!(
                choose(&all[..2], Some("gpu")).unwrap_err().to_string(),
                "CUBECL_WGPU_DEFAULT_DEVICE is `gpu`, but the adapters of this machine are Cpu, \
                 IntegratedGpu(0): set it to one of them, or unset it"
            );
            let none = choose(&[], Some("Cpu")).unwrap_err().to_string();
            assert!(none.starts_with("no wgpu adapter was found"), "{none}");
        }
    }
}

/// A WebGPU adapter.
///
/// # Errors
/// Always: the build has no wgpu.
#[cfg(not(feature = "wgpu"))]
pub fn wgpu() -> Result<Device, DeviceError> {
    Err(DeviceError(
        "this build has no wgpu: build with `--features wgpu`, or use the device `flex`".into(),
    ))
}

/// The number of a GPU, under which autotune keeps what it has found of it; `None` where nothing is tuned.
pub fn tuned_as(device: &Device) -> Option<usize> {
    #[cfg(all(feature = "tuned", feature = "cuda"))]
    {
        let gpus = crate::cuda_probe::probe().map_or(0, |found| found.gpus);
        return (0..gpus).find(|gpu| *device == Device::cuda(*gpu));
    }
    #[cfg(not(all(feature = "tuned", feature = "cuda")))]
    {
        let _ = device;
        None
    }
}

/// The NVIDIA GPU of a rank that is the `local_rank`-th of its host, from 0, among those that the driver
/// shows this process (`CUDA_VISIBLE_DEVICES`); where there are fewer GPUs than ranks, ranks share them. Also
/// a notice for the user in that case.
///
/// # Errors
/// If the machine has no driver, no GPU that the driver can use, no NVRTC to compile kernels, no headers for
/// it, or versions that do not go together: [`CudaError`](crate::cuda_probe::CudaError) says which.
#[cfg(feature = "cuda")]
pub fn cuda_of_rank(local_rank: usize) -> Result<(Device, Option<String>), DeviceError> {
    let found = crate::cuda_probe::probe().map_err(|error| DeviceError(error.to_string()))?;
    let gpu = crate::cuda_probe::gpu_of(local_rank, found.gpus);
    let notice = (local_rank >= found.gpus).then(|| {
        format!(
            "local rank {local_rank} takes GPU {gpu}, which it may share: this process sees {} of them",
            found.gpus
        )
    });
    #[cfg(feature = "tuned")]
    keep_compiled_kernels();
    Ok((Device::cuda(gpu), notice))
}

/// The NVIDIA GPU of a rank.
///
/// # Errors
/// Always: the build has no CUDA.
#[cfg(not(feature = "cuda"))]
pub fn cuda_of_rank(_: usize) -> Result<(Device, Option<String>), DeviceError> {
    Err(DeviceError(
        "this build has no CUDA: build with `--features cuda`, or use the device `flex` or `wgpu`"
            .into(),
    ))
}

/// The first NVIDIA GPU.
///
/// # Errors
/// As [`cuda_of_rank`].
pub fn cuda() -> Result<Device, DeviceError> {
    cuda_of_rank(0).map(|(device, _)| device)
}

/// What the machine has for CUDA, on one line.
///
/// # Errors
/// As [`cuda_of_rank`].
#[cfg(feature = "cuda")]
pub fn cuda_found() -> Result<String, DeviceError> {
    let found = crate::cuda_probe::probe().map_err(|error| DeviceError(error.to_string()))?;
    Ok(found.to_string())
}

/// Has CubeCL keep what it compiles and tunes for later runs, and for the other ranks of this host: in
/// `~/.cache/cubecl` (or below `XDG_CACHE_HOME`), unless a `cubecl.toml` says another place. Before the first use of
/// a device; later it does nothing.
#[cfg(all(feature = "tuned", feature = "cube"))]
fn keep_compiled_kernels() {
    use burn_cubecl::cubecl::config::cache::CacheConfig;
    use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    // The default is a folder `target` below the current one, if that is a crate's.
    if matches!(config.environment.path, CacheConfig::Target) {
        config.environment.path = CacheConfig::Global;
    }
    CubeClRuntimeConfig::try_set(config);
}

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemoryUse {
    /// In use now, by all processes. What CubeCL holds for later counts.
    pub in_use: u64,
    /// All that it has.
    pub total: u64,
}

/// The memory of a GPU; `None` for devices other than CUDA's, which do not tell.
pub fn memory(device: &Device) -> Option<DeviceMemoryUse> {
    #[cfg(feature = "cuda")]
    return crate::device_memory::cuda_index(device).and_then(crate::cuda_probe::memory);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

/// Whether the device is a GPU by CUDA. Burn's matrix products of f32 round what they multiply to TF32 (11 bits) there.
pub fn is_cuda(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return crate::device_memory::cuda_index(device).is_some();
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        false
    }
}

/// Whether the device is flex, the native CPU backend, with or without autodiff.
pub fn is_flex(device: &Device) -> bool {
    fn flex(device: &DispatchDevice) -> bool {
        match device {
            DispatchDevice::Flex(_) => true,
            DispatchDevice::Autodiff(inner) => flex(inner),
            _ => false,
        }
    }
    flex(device.as_dispatch())
}

/// The rate of large matrix products on the device, in TFLOP/s: the best of a few runs. On a GPU whose memory is known they
/// are of this format, and several follow each other, so that asking for them and waiting takes little of their time;
/// elsewhere it is one of f32.
pub fn matmul_tflops(device: &Device, dtype: DType) -> f64 {
    const RUNS: usize = 4;
    let (size, products, dtype) = match memory(device) {
        Some(_) => (4096, 8, dtype),
        None => (1024, 1, DType::F32),
    };
    // The product of such a matrix with itself is the same matrix.
    let a = Tensor::<2>::full([size, size], 1.0 / size as f32, (device, dtype));
    let best = best_of(RUNS, || {
        let last = (0..products).fold(a.clone(), |product, _| product.matmul(a.clone()));
        // Reading one element waits for the products.
        let _ = last.slice([0..1, 0..1]).cast(DType::F32).into_scalar::<f32>();
    });
    products as f64 * 2.0 * (size as f64).powi(3) / best / 1e12
}

/// The rate at which the device reads and writes memory, in bytes a second: the best of a few runs of
/// `y += x` over arrays of 96 MiB, which the caches of few machines hold; of 1 GiB on a GPU whose memory is known,
/// so that asking for the sum and waiting for it take little of its time. An element counts as 12 bytes: two reads and
/// a write.
pub fn memory_bandwidth(device: &Device) -> f64 {
    // WebGPU has to offer buffers of 128 MiB, and no larger ones.
    const LEAST: usize = 24 << 20;
    const MOST: usize = 256 << 20;
    // Two arrays and their sum, of 4 bytes an element, in a quarter of what is free.
    let room = |memory: DeviceMemoryUse| (memory.total.saturating_sub(memory.in_use) / 48) as usize;
    let elements = memory(device).map_or(LEAST, |memory| room(memory).clamp(LEAST, MOST));
    let best = if is_flex(device) { add_on_host(elements) } else { add_on(device, elements) };
    12.0 * elements as f64 / best
}

/// Runs of [`memory_bandwidth`]; the first ones also touch fresh memory, or compile the kernel.
const ADDITIONS: usize = 8;

/// Seconds of the best addition by all threads, in native code.
fn add_on_host(elements: usize) -> f64 {
    const CHUNK: usize = 1 << 16;
    let x = vec![1.0_f32; elements];
    let mut y = vec![0.0_f32; elements];
    best_of(ADDITIONS, || {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| add(y, x));
    })
}

simd_fn! {
    fn add(y: &'a mut [f32], x: &'a [f32]) -> () {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// Seconds of the best addition by Burn, in place.
fn add_on(device: &Device, elements: usize) -> f64 {
    let x = Tensor::<1>::ones([elements], device);
    let mut y = Tensor::<1>::zeros([elements], device);
    best_of(ADDITIONS, || {
        y.inplace(|y| y + x.clone());
        // Reading one element waits for the sum.
        let _ = y.clone().slice(0..1).into_scalar::<f32>();
    })
}

/// Seconds of the fastest of so many runs.
fn best_of(runs: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..runs).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}
