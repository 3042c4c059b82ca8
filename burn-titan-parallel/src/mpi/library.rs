//! The calls of the MPI library that are used, with results for its codes.
//!
//! Nothing here waits for other ranks except [`Comm::world`]'s and [`Comm::group`]'s; the others begin
//! operations, which go on while [`Request::is_done`] is asked. Only the thread that started MPI may call it.

use std::ffi::{c_int, c_void};
use std::ptr;

use ::mpi::ffi;

use super::wire::Type;

/// An operation that the library works on.
#[derive(Debug)]
pub struct Request(ffi::MPI_Request);

impl Request {
    /// Whether it is done; lets the library go on with everything that is under way.
    ///
    /// # Errors
    /// What the library reports.
    pub fn is_done(&mut self) -> Result<bool, String> {
        let mut done = 0;
        // SAFETY: the request came from this library and was not freed: a call that frees it sets it to the
        // null request, which may be asked again.
        check(unsafe { ffi::MPI_Test(&mut self.0, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(done != 0)
    }
}

/// Ranges of a buffer, one for each rank, as the library takes them. It reads them until the operation is
/// done.
#[derive(Debug)]
pub struct Layout {
    counts: Vec<c_int>,
    starts: Vec<c_int>,
}

impl Layout {
    /// Ranges of these lengths, one after the other; together they must not exceed the range of `c_int`.
    pub fn new(lengths: &[usize]) -> Self {
        let counts: Vec<c_int> = lengths.iter().map(|length| *length as c_int).collect();
        let mut start = 0;
        let starts = counts.iter().map(|count| {
            start += count;
            start - count
        });
        Self { starts: starts.collect(), counts }
    }
}

/// What is done with numbers.
#[derive(Debug, Clone, Copy)]
pub struct Reduce {
    /// What they are.
    pub number: Type,
    /// Their maximum is taken; their sum otherwise.
    pub max: bool,
}

impl Reduce {
    fn operation(self) -> ffi::MPI_Op {
        // SAFETY: constants of the library.
        unsafe { if self.max { ffi::RSMPI_MAX } else { ffi::RSMPI_SUM } }
    }
}

/// A communicator of the library. Its operations are its own: they do not mix with another communicator's.
#[derive(Debug, Clone, Copy)]
pub struct Comm(ffi::MPI_Comm);

impl Comm {
    /// All ranks. Its errors are returned, as those of the groups made of it.
    ///
    /// # Errors
    /// What the library reports.
    pub fn world() -> Result<Self, String> {
        // SAFETY: constants of the library, which was started.
        let comm = unsafe { ffi::RSMPI_COMM_WORLD };
        Self(comm).returning_errors()
    }

    /// A group of these ranks of this communicator. Waits for all of them to call it with the same `tag`.
    ///
    /// # Errors
    /// What the library reports.
    pub fn group(self, members: &[usize], tag: i32) -> Result<Self, String> {
        let members: Vec<c_int> = members.iter().map(|rank| *rank as c_int).collect();
        // SAFETY: all pointers are to locals, `members` has the length that is given, and the two groups are
        // freed once.
        unsafe {
            let (mut all, mut some) = (ffi::RSMPI_GROUP_NULL, ffi::RSMPI_GROUP_NULL);
            let mut comm = ffi::RSMPI_COMM_NULL;
            check(ffi::MPI_Comm_group(self.0, &mut all))?;
            let count = members.len() as c_int;
            check(ffi::MPI_Group_incl(all, count, members.as_ptr(), &mut some))?;
            check(ffi::MPI_Comm_create_group(self.0, some, tag, &mut comm))?;
            check(ffi::MPI_Group_free(&mut some))?;
            check(ffi::MPI_Group_free(&mut all))?;
            Self(comm).returning_errors()
        }
    }

    fn returning_errors(self) -> Result<Self, String> {
        // SAFETY: a communicator and a constant of the library.
        check(unsafe { ffi::MPI_Comm_set_errhandler(self.0, ffi::RSMPI_ERRORS_RETURN) })?;
        Ok(self)
    }

    /// This rank and how many there are.
    ///
    /// # Errors
    /// What the library reports.
    pub fn place(self) -> Result<(usize, usize), String> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: pointers to locals.
        unsafe {
            check(ffi::MPI_Comm_rank(self.0, &mut rank))?;
            check(ffi::MPI_Comm_size(self.0, &mut size))?;
        }
        Ok((rank as usize, size as usize))
    }

    /// The names of all ranks' hosts, cut to 64 bytes. Waits for all ranks to call it.
    ///
    /// # Errors
    /// What the library reports.
    pub fn hosts(self, size: usize) -> Result<Vec<String>, String> {
        const NAME: usize = 64;
        let mut all = vec![0_u8; size * NAME];
        // SAFETY: `name` has the room that the library asks for, every rank gives `NAME` of its bytes, and `all`
        // has that for every rank.
        unsafe {
            let mut name = vec![0_u8; NAME + ffi::RSMPI_MAX_PROCESSOR_NAME as usize];
            let mut length = 0;
            check(ffi::MPI_Get_processor_name(name.as_mut_ptr().cast(), &mut length))?;
            let (from, into) = (name.as_ptr().cast(), all.as_mut_ptr().cast());
            let (count, byte) = (NAME as c_int, ffi::RSMPI_UINT8_T);
            check(ffi::MPI_Allgather(from, count, byte, into, count, byte, self.0))?;
        }
        let text = |name: &[u8]| {
            let end = name.iter().position(|b| *b == 0).unwrap_or(NAME);
            String::from_utf8_lossy(&name[..end]).into_owned()
        };
        Ok(all.chunks(NAME).map(text).collect())
    }

    /// Sends every rank as many numbers as every other, and receives as many.
    ///
    /// # Safety
    /// Both buffers hold `count` numbers for each rank and stay as they are until the request is done.
    pub unsafe fn all_to_all_even(
        self,
        from: &[u64],
        into: &mut [u64],
        count: usize,
    ) -> Result<Request, String> {
        let (from, into, count) = (from.as_ptr().cast(), into.as_mut_ptr().cast(), count as c_int);
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            let number = ffi::RSMPI_UINT64_T;
            ffi::MPI_Ialltoall(from, count, number, into, count, number, self.0, out)
        })
    }

    /// The reduction of all ranks' `count` numbers, for all.
    ///
    /// # Safety
    /// Both buffers hold that many, and stay until the request is done.
    pub unsafe fn all_reduce(
        self,
        from: *const u8,
        into: *mut u8,
        count: usize,
        reduce: Reduce,
    ) -> Result<Request, String> {
        let (from, into) = (from.cast(), into.cast());
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            let (number, operation) = (datatype(reduce.number), reduce.operation());
            ffi::MPI_Iallreduce(from, into, count as c_int, number, operation, self.0, out)
        })
    }

    /// The reduction of all ranks' `count` numbers, for the root.
    ///
    /// # Safety
    /// As [`Comm::all_reduce`]'s; `into` is not used but on the root.
    pub unsafe fn reduce(
        self,
        from: *const u8,
        into: *mut u8,
        count: usize,
        reduce: Reduce,
        root: usize,
    ) -> Result<Request, String> {
        let (from, into, count, root) = (from.cast(), into.cast(), count as c_int, root as c_int);
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            let (number, operation) = (datatype(reduce.number), reduce.operation());
            ffi::MPI_Ireduce(from, into, count, number, operation, root, self.0, out)
        })
    }

    /// The reduction, of which every rank gets its range.
    ///
    /// # Safety
    /// `from` holds the numbers of all ranges, `into` those of the own one; all stay until the request is done.
    pub unsafe fn reduce_scatter(
        self,
        from: *const u8,
        into: *mut u8,
        layout: &Layout,
        reduce: Reduce,
    ) -> Result<Request, String> {
        let (from, into, counts) = (from.cast(), into.cast(), layout.counts.as_ptr());
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            let (number, operation) = (datatype(reduce.number), reduce.operation());
            ffi::MPI_Ireduce_scatter(from, into, counts, number, operation, self.0, out)
        })
    }

    /// All ranks' bytes, one after the other.
    ///
    /// # Safety
    /// `from` holds `count` bytes, `into` those of the layout; all stay until the request is done.
    pub unsafe fn all_gather(
        self,
        from: *const u8,
        count: usize,
        into: *mut u8,
        layout: &Layout,
    ) -> Result<Request, String> {
        let (from, into, count) = (from.cast(), into.cast(), count as c_int);
        let (counts, starts) = (layout.counts.as_ptr(), layout.starts.as_ptr());
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            let byte = ffi::RSMPI_UINT8_T;
            ffi::MPI_Iallgatherv(from, count, byte, into, counts, starts, byte, self.0, out)
        })
    }

    /// A range of bytes for every rank, and one from each.
    ///
    /// # Safety
    /// The buffers hold what the layouts say; all stay until the request is done.
    pub unsafe fn all_to_all(
        self,
        from: *const u8,
        send: &Layout,
        into: *mut u8,
        receive: &Layout,
    ) -> Result<Request, String> {
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            let byte = ffi::RSMPI_UINT8_T;
            ffi::MPI_Ialltoallv(
                from.cast(),
                send.counts.as_ptr(),
                send.starts.as_ptr(),
                byte,
                into.cast(),
                receive.counts.as_ptr(),
                receive.starts.as_ptr(),
                byte,
                self.0,
                out,
            )
        })
    }

    /// The root's bytes, for all.
    ///
    /// # Safety
    /// The buffer holds `count` bytes and stays until the request is done.
    pub unsafe fn broadcast(
        self,
        buffer: *mut u8,
        count: usize,
        root: usize,
    ) -> Result<Request, String> {
        let (buffer, count, root) = (buffer.cast(), count as c_int, root as c_int);
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            ffi::MPI_Ibcast(buffer, count, ffi::RSMPI_UINT8_T, root, self.0, out)
        })
    }

    /// Sends bytes to a rank. Messages of one tag between two ranks arrive in order.
    ///
    /// # Safety
    /// The buffer holds `count` bytes and stays until the request is done.
    pub unsafe fn send(
        self,
        from: *const u8,
        count: usize,
        to: usize,
        tag: i32,
    ) -> Result<Request, String> {
        let (from, count, to): (*const c_void, _, _) = (from.cast(), count as c_int, to as c_int);
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            ffi::MPI_Isend(from, count, ffi::RSMPI_UINT8_T, to, tag, self.0, out)
        })
    }

    /// Receives bytes from a rank.
    ///
    /// # Safety
    /// The buffer holds `count` bytes and stays until the request is done.
    pub unsafe fn receive(
        self,
        into: *mut u8,
        count: usize,
        from: usize,
        tag: i32,
    ) -> Result<Request, String> {
        let (into, count, from) = (into.cast(), count as c_int, from as c_int);
        // SAFETY: the caller's promise.
        request(|out| unsafe {
            ffi::MPI_Irecv(into, count, ffi::RSMPI_UINT8_T, from, tag, self.0, out)
        })
    }

    /// Done once every rank has called it.
    ///
    /// # Errors
    /// What the library reports.
    pub fn barrier(self) -> Result<Request, String> {
        // SAFETY: `out` is a place for a request.
        request(|out| unsafe { ffi::MPI_Ibarrier(self.0, out) })
    }
}

fn request(begin: impl FnOnce(*mut ffi::MPI_Request) -> c_int) -> Result<Request, String> {
    // SAFETY: a constant of the library.
    let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
    check(begin(&mut request))?;
    Ok(Request(request))
}

fn datatype(number: Type) -> ffi::MPI_Datatype {
    // SAFETY: constants of the library.
    unsafe {
        match number {
            Type::U8 => ffi::RSMPI_UINT8_T,
            Type::U32 => ffi::RSMPI_UINT32_T,
            Type::I32 => ffi::RSMPI_INT32_T,
            Type::I64 => ffi::RSMPI_INT64_T,
            Type::F32 => ffi::RSMPI_FLOAT,
        }
    }
}

/// The library's text for a code that is no success.
fn check(code: c_int) -> Result<(), String> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    // The standard has no implementation's texts longer than this.
    // Longer than any implementation's MPI_MAX_ERROR_STRING.
    let mut text = [0_u8; 1024];
    let mut length = 0;
    // SAFETY: there is room for the longest text, and both pointers are to locals.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), ptr::from_mut(&mut length)) };
    let text = String::from_utf8_lossy(&text[..(length as usize).min(text.len())]);
    Err(format!("error {code}: {text}"))
}
