//! `doctor`.

use burn::tensor::DType;
use burn_titan_core::config::{ComputeDtype, DeviceKind};
use burn_titan_core::model::Registry;
use burn_titan_core::trainer::{TrainError, open_device};
use burn_titan_kernels::device::matmul_tflops;
use burn_titan_parallel::launch::{self, Flags, Place, Variables};
use burn_titan_parallel::nccl;

use crate::output;

pub fn print(registry: &Registry) -> Result<(), TrainError> {
    output::line(concat!("burn-titan ", env!("CARGO_PKG_VERSION")))?;
    for (name, kind) in
        [("flex", DeviceKind::Flex), ("wgpu", DeviceKind::Wgpu), ("cuda", DeviceKind::Cuda)]
    {
        match open_device(kind, ComputeDtype::Float32) {
            Err(TrainError::Device(error)) => output::line(&format!("{name:6} no   {error}"))?,
            Err(other) => return Err(other),
            Ok(device) => {
                let bf16 = open_device(kind, ComputeDtype::Bfloat16).is_ok();
                output::line(&format!(
                    "{name:6} yes  float32{}; f32 matrix product {:.3} TFLOP/s",
                    if bf16 { ", bfloat16" } else { "" },
                    matmul_tflops(&device, DType::F32)
                ))?;
                describe(kind)?;
            }
        }
    }
    output::line(&match nccl::version() {
        Ok(version) => format!("nccl   yes  NCCL {version}"),
        Err(error) => format!("nccl   no   {error}"),
    })?;
    let place = launch::read(&Flags::default(), &Variables::of_process());
    output::line(&match place {
        Ok(Place::Rank(rank)) => format!("launch: {rank}"),
        Ok(Place::Host(host)) => format!("launch: {host}"),
        Err(error) => format!("launch: {error}"),
    })?;
    for name in registry.names() {
        if let Some(family) = registry.get(name) {
            output::line(&format!(
                "model {name}: flavors {}; attention {}",
                family.flavors().join(", "),
                family.attentions().join(", ")
            ))?;
        }
    }
    Ok(())
}

/// What a device was found with.
fn describe(kind: DeviceKind) -> Result<(), TrainError> {
    match kind {
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => {
            let found = burn_titan_kernels::device::cuda_found()?;
            output::line(&format!("            {found}"))
        }
        _ => Ok(()),
    }
}
