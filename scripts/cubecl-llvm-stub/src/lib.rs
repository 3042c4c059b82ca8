//! The part of cubecl-llvm 0.11.3 that cubecl-cuda names, without LLVM.
//!
//! burn-titan compiles CUDA kernels by CubeCL's CUDA C++ compiler (the feature `cubecl/cuda-cpp`), and never by
//! this one; but cubecl-cuda links both, and cubecl-llvm's build script downloads a bundle of LLVM. With
//! this crate in its place (`scripts/build-cuda`) a build needs nothing but a crate registry. Whoever asks it to
//! compile gets an error.

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_server::compiler::CompilationError;
use cubecl_server::kernel::BufferIOAttr;
use nvptx::ptx_version::PtxVersion;

/// As in cubecl-llvm.
pub mod nvptx {
    /// As in cubecl-llvm.
    pub mod ptx_version {
        /// A version of PTX; there is none here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest version that a driver loads; unknown here.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl std::fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match *self {}
            }
        }
    }
}

/// As in cubecl-llvm.
pub mod shared {
    /// As in cubecl-llvm.
    pub mod lowered_features {
        /// What to compile for.
        pub enum GpuTarget {
            /// NVIDIA GPUs.
            Nvptx,
        }

        /// Called only where LLVM was chosen, which `cubecl/cuda-cpp` rules out: changes nothing.
        pub fn restrict_features(_: &mut cubecl_core::ir::DeviceProperties, _: GpuTarget) {}
    }
}

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA GPUs.
    Nvptx,
}

/// The compiler that is not here.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// What to compile for.
    pub target: LlvmTarget,
}

/// Its options.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Unused.
    pub arch: Option<()>,
    /// The GPU.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX.
    pub ptx_version: Option<PtxVersion>,
    /// Whether parameters are passed as grid constants.
    pub grid_constants: bool,
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Its code.
    pub ptx: Vec<std::ffi::c_char>,
    /// The name of its function.
    pub entrypoint: String,
    /// What it was compiled from.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// What it does with its buffers.
    pub io: Vec<BufferIOAttr>,
}

/// What the compiler makes.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// Code for NVIDIA GPUs.
    NvptxCode(NvptxModule),
    /// Code for others.
    Other,
}

impl PlironCompiler {
    /// Fails.
    ///
    /// # Errors
    /// Always: there is no LLVM in this build.
    pub fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM: it compiles kernels by CUDA C++".into(),
            backtrace: Default::default(),
        })
    }

    /// The name of its language.
    pub fn lang_tag(&self) -> &'static str {
        "ll"
    }
}
