//! Opening devices, with a clear error where one is not to be had, and asking what they are.

use std::time::Instant;

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};

/// Why a device cannot be used. The message names the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceError(String);

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

/// A WebGPU adapter: the one that `CUBECL_WGPU_DEFAULT_DEVICE` names, else the strongest there is.
///
/// # Errors
/// If the build has no wgpu, or the machine no adapter.
#[cfg(feature = "wgpu")]
pub fn wgpu() -> Result<Device, DeviceError> {
    use burn::tensor::{DeviceKind, DeviceType};
    if Device::enumerate(DeviceType::Wgpu).is_empty() {
        return Err(DeviceError(
            "no wgpu adapter was found: install a Vulkan driver for the GPU, or a software one \
             (`apt-get install mesa-vulkan-drivers`), or train with training.device=flex"
                .into(),
        ));
    }
    Ok(Device::wgpu(DeviceKind::DefaultDevice))
}

/// A WebGPU adapter.
///
/// # Errors
/// Always: the build has no wgpu.
#[cfg(not(feature = "wgpu"))]
pub fn wgpu() -> Result<Device, DeviceError> {
    Err(DeviceError("this build has no wgpu: build with `--features wgpu`".into()))
}

/// The first NVIDIA GPU.
///
/// # Errors
/// If the build has no CUDA, or the machine no driver.
#[cfg(feature = "cuda")]
pub fn cuda() -> Result<Device, DeviceError> {
    // CubeCL panics where the driver is missing, so it is looked for first.
    // SAFETY: loading the driver's library runs its initialisers, as every CUDA program does.
    if unsafe { libloading::Library::new("libcuda.so.1") }.is_err() {
        return Err(DeviceError(
            "the CUDA driver (libcuda.so.1) was not found: install NVIDIA's driver, or train with \
             training.device=flex"
                .into(),
        ));
    }
    Ok(Device::cuda(0_usize))
}

/// The first NVIDIA GPU.
///
/// # Errors
/// Always: the build has no CUDA.
#[cfg(not(feature = "cuda"))]
pub fn cuda() -> Result<Device, DeviceError> {
    Err(DeviceError(
        "this build has no CUDA: build with `--features cuda`, or train with training.device=flex \
         or training.device=wgpu"
            .into(),
    ))
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

/// The rate of a large f32 matrix product on the device, in TFLOP/s: the best of a few runs.
pub fn matmul_tflops(device: &Device) -> f64 {
    const SIZE: usize = 1024;
    const RUNS: usize = 4;
    let a = Tensor::<2>::full([SIZE, SIZE], 0.5, device);
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        // Reading one element waits for the product.
        let _ = a.clone().matmul(a.clone()).slice([0..1, 0..1]).into_scalar::<f32>();
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (SIZE as f64).powi(3) / best / 1e12
}
