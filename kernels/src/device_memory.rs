//! Where tensors of a CUDA device lie, for libraries that work on its memory, as NCCL does.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{Device, Int, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;
use cubecl_runtime::runtime::Runtime;

use crate::cube::into_contiguous;
use crate::device::DeviceError;

/// The memory of a contiguous tensor. It is neither freed nor moved as long as this is there.
pub struct DeviceMemory {
    address: u64,
    _held: Option<Box<dyn Any + Send>>,
}

impl DeviceMemory {
    /// Its address on the device; 0 for a tensor without elements.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// Which NVIDIA GPU the device is, in the order of the driver; `None` if it is none.
pub fn cuda_index(device: &Device) -> Option<usize> {
    fn index(device: &DispatchDevice) -> Option<usize> {
        match device {
            DispatchDevice::Cube(CubeDevice::Cuda(cuda)) => Some(cuda.index),
            DispatchDevice::Autodiff(inner) => index(inner),
            _ => None,
        }
    }
    index(device.as_dispatch())
}

/// The tensor, contiguous, and its memory, after all work on it that was begun so far.
///
/// What is written there is what later operations on the returned tensor read; other tensors may share it.
///
/// # Errors
/// If the device is no NVIDIA GPU, or an operation on it has failed.
pub fn float_memory(x: Tensor<1>) -> Result<(Tensor<1>, DeviceMemory), DeviceError> {
    let (device, elements) = (x.device(), x.dims()[0]);
    let slot = slot(&device)?;
    let x = Dispatch::shown_float(x.into_dispatch(), slot.clone());
    Ok((Tensor::from_dispatch(x), memory(&device, elements, &slot)?))
}

/// As [`float_memory`].
///
/// # Errors
/// As [`float_memory`]'s.
pub fn int_memory(x: Tensor<1, Int>) -> Result<(Tensor<1, Int>, DeviceMemory), DeviceError> {
    let (device, elements) = (x.device(), x.dims()[0]);
    let slot = slot(&device)?;
    let x = Dispatch::shown_int(x.into_dispatch(), slot.clone());
    Ok((Tensor::from_dispatch(x), memory(&device, elements, &slot)?))
}

/// Where an operation leaves the tensor that it was given: fusion puts it off.
pub type Slot = Arc<Mutex<Option<CubeTensor>>>;

/// The dispatched forms of [`float_memory`] and [`int_memory`]: the tensor itself, contiguous, also in `slot`.
#[backend_extension(Cube, Fusion: cfg(feature = "tuned"))]
pub trait MemoryOps: Backend {
    /// See [`float_memory`].
    #[fusion(dtype = tensor, shape = tensor)]
    fn shown_float(tensor: FloatTensor<Self>, slot: Slot) -> FloatTensor<Self>;

    /// See [`int_memory`].
    #[fusion(dtype = tensor, shape = tensor)]
    fn shown_int(tensor: IntTensor<Self>, slot: Slot) -> IntTensor<Self>;
}

impl MemoryOps for burn_cubecl::CubeBackend {
    fn shown_float(tensor: FloatTensor<Self>, slot: Slot) -> FloatTensor<Self> {
        shown(tensor, &slot)
    }

    fn shown_int(tensor: IntTensor<Self>, slot: Slot) -> IntTensor<Self> {
        shown(tensor, &slot)
    }
}

fn shown(tensor: CubeTensor, slot: &Slot) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(tensor.clone());
    tensor
}

fn slot(device: &Device) -> Result<Slot, DeviceError> {
    match cuda_index(device) {
        Some(_) => Ok(Slot::default()),
        None => Err(DeviceError::new(format!("{device:?} is no NVIDIA GPU"))),
    }
}

fn memory(device: &Device, elements: usize, slot: &Slot) -> Result<DeviceMemory, DeviceError> {
    if elements == 0 {
        return Ok(DeviceMemory { address: 0, _held: None });
    }
    let failed = |error: String| DeviceError::new(format!("work on {device:?} failed: {error}"));
    // Fusion runs what it has put off.
    device.sync().map_err(|error| failed(error.to_string()))?;
    let tensor = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let tensor = tensor.ok_or_else(|| failed("the tensor was not computed".to_string()))?;
    let resource = tensor
        .client
        .get_resource::<<CudaRuntime as Runtime>::Server>(tensor.handle.clone())
        .map_err(|error| failed(error.to_string()))?;
    // The stream of this thread now follows the one that the tensor was computed on: wait for both.
    device.sync().map_err(|error| failed(error.to_string()))?;
    Ok(DeviceMemory { address: resource.resource().ptr, _held: Some(Box::new(resource)) })
}
