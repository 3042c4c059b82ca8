//! The calls of NCCL and of the CUDA driver that are used, with results for their codes.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUresult, CUstream, cuStreamQuery};
use cudarc::nccl::{result as nccl, sys};

use super::error::NcclError;
use super::plan::NcclCall;
use crate::host::{Element, Reduction};

/// Bytes of the number by which the ranks of a group find each other.
pub const ID: usize = 128;

/// Whether the library is there. It is loaded when it is called first, and cudarc panics where it is missing.
///
/// # Errors
/// If it is not.
pub fn check() -> Result<(), NcclError> {
    // SAFETY: loads the library, as every call of it does.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(NcclError::NoLibrary) }
}

/// The version of the library.
///
/// # Errors
/// If it is missing, or does not say.
pub fn version() -> Result<String, NcclError> {
    check()?;
    // SAFETY: writes the number there.
    let mut number = 0;
    let code = unsafe { sys::ncclGetVersion(&mut number) };
    match code {
        // 10000 times the major version and 100 times the minor one.
        sys::ncclResult_t::ncclSuccess => {
            Ok(format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100))
        }
        _ => Err(NcclError::NoLibrary),
    }
}

/// A new number for a group.
///
/// # Errors
/// What NCCL reports.
pub fn new_id() -> Result<[u8; ID], String> {
    let id = nccl::get_uniqueid().map_err(|error| text(&error))?;
    Ok(id.internal.map(|byte| byte as u8))
}

/// A stream of one GPU, in the context that CubeCL uses too.
#[derive(Debug)]
pub struct Stream(CUstream);

impl Stream {
    /// A stream of the GPU of this number, whose context becomes the one of this thread.
    ///
    /// # Errors
    /// What CUDA reports.
    pub fn open(gpu: usize) -> Result<Self, String> {
        let cuda = |error: driver::DriverError| format!("CUDA: {error:?}");
        driver::init().map_err(cuda)?;
        let device = driver::device::get(gpu as c_int).map_err(cuda)?;
        // SAFETY: the device came from the driver, and the context from the device. It is never released: the
        // stream needs it as long as the process runs.
        unsafe {
            let context = driver::primary_ctx::retain(device).map_err(cuda)?;
            driver::ctx::set_current(context).map_err(cuda)?;
        }
        driver::stream::create(driver::stream::StreamKind::NonBlocking).map(Self).map_err(cuda)
    }

    /// Whether everything on it is done.
    ///
    /// # Errors
    /// What CUDA reports.
    pub fn is_done(&self) -> Result<bool, String> {
        // SAFETY: the stream was created here and is never destroyed.
        match unsafe { cuStreamQuery(self.0) } {
            CUresult::CUDA_SUCCESS => Ok(true),
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            error => Err(format!("CUDA: {error:?}")),
        }
    }
}

/// A group's communicator.
#[derive(Debug)]
pub struct Comm(sys::ncclComm_t);

/// What calls work on: the elements, how they are reduced, and the addresses of input and output.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    /// Of input and output.
    pub element: Element,
    /// For the calls that reduce.
    pub reduction: Reduction,
    /// On the device.
    pub input: u64,
    /// On the device.
    pub output: u64,
}

impl Comm {
    /// Joins the group of this number, on the GPU of this thread's context. Waits for all ranks.
    ///
    /// # Errors
    /// What NCCL reports.
    pub fn join(id: &[u8; ID], rank: usize, size: usize) -> Result<Self, String> {
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte as _) };
        let mut comm = MaybeUninit::uninit();
        // SAFETY: `comm` is a place for a communicator, which is there where the call has succeeded.
        unsafe {
            nccl::comm_init_rank(comm.as_mut_ptr(), size as c_int, id, rank as c_int)
                .map_err(|error| text(&error))?;
            Ok(Self(comm.assume_init()))
        }
    }

    /// Begins calls on a stream, all together.
    ///
    /// # Safety
    /// Input and output hold the elements that the calls name, and are not freed, read or written by anyone else
    /// until the stream is done.
    ///
    /// # Errors
    /// What NCCL reports.
    pub unsafe fn begin(
        &self,
        stream: &Stream,
        calls: &[NcclCall],
        operands: &Operands,
    ) -> Result<(), String> {
        nccl::group_start().map_err(|error| text(&error))?;
        // SAFETY: the caller's promise.
        let begun =
            calls.iter().try_for_each(|call| unsafe { self.begin_one(stream, *call, operands) });
        // Also after a failure: what was begun must not stay open.
        nccl::group_end().map_err(|error| text(&error))?;
        begun
    }

    /// # Safety
    /// As [`Comm::begin`]'s.
    unsafe fn begin_one(
        &self,
        stream: &Stream,
        call: NcclCall,
        operands: &Operands,
    ) -> Result<(), String> {
        let Operands { element, reduction, input, output } = *operands;
        let (dtype, op) = (datatype(element), operation(reduction));
        let from = |at: usize| (input + (at * element.size()) as u64) as *const _;
        let into = |at: usize| (output + (at * element.size()) as u64) as *mut _;
        let (comm, stream) = (self.0, stream.0 as sys::cudaStream_t);
        // SAFETY: the caller's promise.
        let begun = unsafe {
            match call {
                NcclCall::AllReduce { count } => {
                    nccl::all_reduce(from(0), into(0), count, dtype, op, comm, stream)
                }
                NcclCall::AllGather { count } => {
                    nccl::all_gather(from(0), into(0), count, dtype, comm, stream)
                }
                NcclCall::ReduceScatter { count } => {
                    nccl::reduce_scatter(from(0), into(0), count, dtype, op, comm, stream)
                }
                NcclCall::Broadcast { from: at, into: to, count, root } => {
                    let root = root as c_int;
                    nccl::broadcast(from(at), into(to), count, dtype, root, comm, stream)
                }
                NcclCall::Reduce { from: at, into: to, count, root } => {
                    let root = root as c_int;
                    nccl::reduce(from(at), into(to), count, dtype, op, root, comm, stream)
                }
                NcclCall::Send { from: at, count, to } => {
                    nccl::send(from(at), count, dtype, to as c_int, comm, stream)
                }
                NcclCall::Receive { into: to, count, sender } => {
                    nccl::recv(into(to), count, dtype, sender as c_int, comm, stream)
                }
            }
        };
        begun.map(drop).map_err(|error| text(&error))
    }

    /// What has failed while the calls were carried out, as when a peer's connection is gone.
    ///
    /// # Errors
    /// What NCCL reports.
    pub fn check(&self) -> Result<(), String> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator was made here, and `state` is a place for a code.
        unsafe { sys::ncclCommGetAsyncError(self.0, &mut state).result() }
            .and_then(|_| state.result())
            .map(drop)
            .map_err(|error| text(&error))
    }

    /// Frees it at once, without a word to its peers.
    pub fn abort(self) {
        // SAFETY: the communicator was made here, and is not used again. What this reports helps nobody.
        let _ = unsafe { nccl::comm_abort(self.0) };
    }
}

fn text(error: &nccl::NcclError) -> String {
    // SAFETY: the library has a text for every code, which is never freed.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(error.0)) };
    format!("{:?}: {}", error.0, text.to_string_lossy())
}

fn datatype(element: Element) -> sys::ncclDataType_t {
    match element {
        Element::F32 => sys::ncclDataType_t::ncclFloat32,
        Element::F16 => sys::ncclDataType_t::ncclFloat16,
        Element::BF16 => sys::ncclDataType_t::ncclBfloat16,
        Element::I32 => sys::ncclDataType_t::ncclInt32,
        Element::U8 => sys::ncclDataType_t::ncclUint8,
    }
}

fn operation(reduction: Reduction) -> sys::ncclRedOp_t {
    match reduction {
        Reduction::Sum => sys::ncclRedOp_t::ncclSum,
        Reduction::Average => sys::ncclRedOp_t::ncclAvg,
        Reduction::Max => sys::ncclRedOp_t::ncclMax,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_and_reductions_have_the_numbers_of_nccl_h() {
        let numbers = Element::ALL.map(|element| datatype(element) as u32);
        assert_eq!(numbers, [7, 6, 9, 2, 1]);
        let numbers = Reduction::ALL.map(|reduction| operation(reduction) as u32);
        assert_eq!(numbers, [0, 4, 2]);
    }

    #[test]
    fn a_missing_library_is_said_to_be_missing() {
        match check() {
            Ok(()) => println!("skipped: NCCL is installed"),
            Err(error) => {
                assert!(error.to_string().starts_with("NCCL (libnccl.so) was not found: install"));
            }
        }
    }
}
