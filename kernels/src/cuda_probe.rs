//! What kernels need on a machine with NVIDIA GPUs, looked for before CubeCL, which panics where it is missing.
//!
//! The driver and NVRTC, which compiles kernels while the program runs, are the libraries that CubeCL itself will load.
//! What is made of what they say is plain functions, which are tested without them.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A version of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 13 of 13.0.
    pub major: i32,
    /// 0 of 13.0.
    pub minor: i32,
}

impl Version {
    /// As the driver writes it: 1000 times the major version and 10 times the minor one.
    pub fn of_driver(number: i32) -> Self {
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a machine has for CUDA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cuda {
    /// The newest CUDA that the driver knows.
    pub driver: Version,
    /// GPUs that this process may use.
    pub gpus: usize,
    /// Which NVRTC compiles kernels.
    pub nvrtc: Version,
    /// Where it looks for headers.
    pub headers: PathBuf,
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gpus, headers) = (self.gpus, self.headers.display());
        let plural = if gpus == 1 { "" } else { "s" };
        write!(
            f,
            "{gpus} GPU{plural}, driver for CUDA {}, NVRTC {}, headers in {headers}",
            self.driver, self.nvrtc
        )
    }
}

/// What is missing. Every message says what to install.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    /// There is no driver.
    #[error(
        "the CUDA driver (libcuda.so.1) was not found: install NVIDIA's driver (`nvidia-smi` shows whether it works), or use the device `flex`"
    )]
    NoDriver,
    /// The driver does not start.
    #[error(
        "the CUDA driver does not start ({0}): install NVIDIA's driver anew (`nvidia-smi` shows whether it works), or use the device `flex`"
    )]
    BrokenDriver(String),
    /// The driver sees no GPU.
    #[error(
        "the CUDA driver sees no GPU: look at CUDA_VISIBLE_DEVICES and `nvidia-smi`, or use the device `flex`"
    )]
    NoGpu,
    /// The driver lacks functions that this program calls.
    #[error(
        "the driver is for CUDA {driver}, but this program needs one for CUDA {needed} or newer: install a newer NVIDIA driver, or use the device `flex`"
    )]
    OldDriver {
        /// The driver's.
        driver: Version,
        /// The oldest that will do.
        needed: Version,
    },
    /// There is no NVRTC.
    #[error(
        "NVRTC (libnvrtc.so), which compiles the kernels, was not found: install the CUDA toolkit {0} or older, or add the folder of the library to LD_LIBRARY_PATH, or use the device `flex`"
    )]
    NoNvrtc(Version),
    /// NVRTC does not say which it is.
    #[error(
        "NVRTC (libnvrtc.so) is broken ({0}): install the CUDA toolkit of your driver, or use the device `flex`"
    )]
    BrokenNvrtc(String),
    /// The driver cannot load what NVRTC makes.
    #[error(
        "NVRTC {nvrtc} compiles kernels that a driver for CUDA {driver} cannot load: install a newer NVIDIA driver, or the CUDA toolkit {driver} or older (LD_LIBRARY_PATH says which NVRTC is taken)"
    )]
    NewNvrtc {
        /// NVRTC's version.
        nvrtc: Version,
        /// The driver's.
        driver: Version,
    },
    /// There is no toolkit whose headers kernels could include.
    #[error(
        "the headers of CUDA, which kernels include, were not found: install the CUDA toolkit, and set CUDA_PATH to its folder if that is not /usr/local/cuda, or use the device `flex`"
    )]
    NoToolkit,
    /// A header is missing.
    #[error(
        "{}: the header {file}, which kernels include, is not there: install the CUDA toolkit with its runtime headers (`cuda-cudart-dev`, `cuda-crt` and `cuda-cccl` of NVIDIA's packages), or set CUDA_PATH to a folder whose `include` has them",
        folder.display()
    )]
    NoHeader {
        /// Where it was looked for.
        folder: PathBuf,
        /// Its name.
        file: &'static str,
    },
}

/// The oldest driver that knows the functions which a program built for this version of CUDA calls.
fn oldest_driver(built: Version) -> Version {
    // Events got a second version of a function in 12.8, which CUDA 13's bindings call.
    match built.major {
        13.. => Version { major: 12, minor: 8 },
        major => Version { major, minor: 0 },
    }
}

/// Whether the driver loads what NVRTC compiles, for a program built for the version `built`.
fn check_versions(driver: Version, nvrtc: Version, built: Version) -> Result<(), CudaError> {
    let needed = oldest_driver(built);
    if driver < needed {
        return Err(CudaError::OldDriver { driver, needed });
    }
    // A driver refuses PTX of a newer version than its own, also within a major version.
    if nvrtc > driver { Err(CudaError::NewNvrtc { nvrtc, driver }) } else { Ok(()) }
}

/// Headers that kernels include: the types of halves and bytes, matrix units, and what those include in turn.
const HEADERS: [&str; 6] =
    ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "mma.h", "crt/mma.h"];

/// Whether the toolkit in this folder has the headers; gives the folder that they are in.
fn check_headers(toolkit: Option<&Path>) -> Result<PathBuf, CudaError> {
    let folder = toolkit.ok_or(CudaError::NoToolkit)?.join("include");
    match HEADERS.iter().find(|file| !folder.join(file).is_file()) {
        Some(file) => Err(CudaError::NoHeader { folder, file }),
        None => Ok(folder),
    }
}

/// Which GPU of `gpus` the rank takes that is the `local_rank`-th of its host: each its own, and those that are more
/// than there are GPUs share them in turn.
pub(crate) fn gpu_of(local_rank: usize, gpus: usize) -> usize {
    local_rank % gpus.max(1)
}

/// Looks for all of it.
///
/// # Errors
/// The first thing that is missing.
#[cfg(feature = "cuda")]
pub fn probe() -> Result<Cuda, CudaError> {
    use cudarc::driver::sys::CUDA_VERSION;
    let (driver, gpus) = probe_driver()?;
    let nvrtc = probe_nvrtc(driver)?;
    check_versions(driver, nvrtc, Version::of_driver(CUDA_VERSION as i32))?;
    let headers = check_headers(cubecl::cuda::install::cuda_path().as_deref())?;
    Ok(Cuda { driver, gpus, nvrtc, headers })
}

/// The version of the driver, and how many GPUs it counts.
#[cfg(feature = "cuda")]
fn probe_driver() -> Result<(Version, usize), CudaError> {
    use cudarc::driver::{result, sys};
    let broken = |error: result::DriverError| CudaError::BrokenDriver(format!("{:?}", error.0));
    // SAFETY: loads the library as every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match result::init() {
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(CudaError::NoGpu),
        other => other.map_err(broken),
    }?;
    let mut version = 0;
    // SAFETY: writes the version there.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(broken)?;
    match result::device::get_count().map_err(broken)? {
        gpus @ 1.. => Ok((Version::of_driver(version), gpus as usize)),
        _ => Err(CudaError::NoGpu),
    }
}

/// The memory of the GPU of this number, in the order of the driver, which has started; `None` where it does not say.
#[cfg(feature = "cuda")]
pub(crate) fn memory(gpu: usize) -> Option<crate::device::DeviceMemoryUse> {
    use cudarc::driver::result::{ctx, device, mem_get_info, primary_ctx};
    let gpu = device::get(i32::try_from(gpu).ok()?).ok()?;
    // SAFETY: the device came from the driver, and the context from the device. CubeCL holds the same context, so
    // that it stays when it is released here.
    let (free, total) = unsafe {
        ctx::set_current(primary_ctx::retain(gpu).ok()?).ok()?;
        let memory = mem_get_info();
        primary_ctx::release(gpu).ok()?;
        memory.ok()?
    };
    let (free, total) = (free as u64, total as u64);
    Some(crate::device::DeviceMemoryUse { in_use: total.saturating_sub(free), total })
}

/// The version of NVRTC.
#[cfg(feature = "cuda")]
fn probe_nvrtc(driver: Version) -> Result<Version, CudaError> {
    use cudarc::nvrtc::sys;
    // SAFETY: loads the library as CubeCL will.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoNvrtc(driver));
    }
    let mut version = Version { major: 0, minor: 0 };
    // SAFETY: writes both numbers there.
    let code = unsafe { sys::nvrtcVersion(&mut version.major, &mut version.minor) };
    match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(version),
        error => Err(CudaError::BrokenNvrtc(format!("{error:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn version(major: i32, minor: i32) -> Version {
        Version { major, minor }
    }

    #[test]
    fn versions_are_read_as_the_driver_writes_them() {
        assert_eq!(Version::of_driver(12_080), version(12, 8));
        assert_eq!(Version::of_driver(13_000).to_string(), "13.0");
        assert!(version(12, 9) < version(13, 0) && version(12, 8) < version(12, 9));
    }

    #[test]
    fn nvrtc_may_not_be_newer_than_the_driver() {
        let built = version(13, 0);
        for (driver, nvrtc) in [((13, 0), (13, 0)), ((13, 2), (12, 9)), ((12, 8), (12, 4))] {
            let [driver, nvrtc] = [driver, nvrtc].map(|(major, minor)| version(major, minor));
            assert_eq!(check_versions(driver, nvrtc, built), Ok(()));
        }
        let refused = check_versions(version(13, 0), version(13, 2), built).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "NVRTC 13.2 compiles kernels that a driver for CUDA 13.0 cannot load: install a newer \
             NVIDIA driver, or the CUDA toolkit 13.0 or older (LD_LIBRARY_PATH says which NVRTC is \
             taken)"
        );
    }

    #[test]
    fn a_driver_must_know_what_the_program_calls() {
        let nvrtc = version(12, 0);
        let old = check_versions(version(12, 4), nvrtc, version(13, 0)).unwrap_err();
        assert_eq!(
            old.to_string(),
            "the driver is for CUDA 12.4, but this program needs one for CUDA 12.8 or newer: \
             install a newer NVIDIA driver, or use the device `flex`"
        );
        assert_eq!(check_versions(version(12, 4), nvrtc, version(12, 8)), Ok(()));
        assert!(check_versions(version(11, 8), nvrtc, version(12, 8)).is_err());
    }

    #[test]
    fn a_missing_header_is_named() {
        assert_eq!(check_headers(None), Err(CudaError::NoToolkit));
        let toolkit = std::env::temp_dir().join(format!("burn-titan-cuda-{}", std::process::id()));
        let include = toolkit.join("include");
        std::fs::create_dir_all(include.join("crt")).unwrap();
        for (i, file) in HEADERS.iter().enumerate() {
            let missing = check_headers(Some(&toolkit));
            assert_eq!(missing, Err(CudaError::NoHeader { folder: include.clone(), file }), "{i}");
            std::fs::write(include.join(file), "").unwrap();
        }
        assert_eq!(check_headers(Some(&toolkit)), Ok(include.clone()));
        std::fs::remove_dir_all(&toolkit).unwrap();
        let message = check_headers(Some(&toolkit)).unwrap_err().to_string();
        let begins = format!("{}: the header cuda_runtime.h, which kernels", include.display());
        assert!(message.starts_with(&begins), "{message}");
    }

    #[test]
    fn ranks_beyond_the_gpus_share_them_in_turn() {
        let taken: Vec<usize> = (0..5).map(|local_rank| gpu_of(local_rank, 2)).collect();
        assert_eq!(taken, [0, 1, 0, 1, 0]);
        assert_eq!(gpu_of(3, 1), 0);
    }

    #[test]
    fn what_was_found_is_one_line() {
        let headers = PathBuf::from("/usr/local/cuda/include");
        let found = Cuda { driver: version(13, 0), gpus: 8, nvrtc: version(12, 9), headers };
        assert_eq!(
            found.to_string(),
            "8 GPUs, driver for CUDA 13.0, NVRTC 12.9, headers in /usr/local/cuda/include"
        );
    }
}
