//! The GPU of a rank, and groups of ranks that exchange its memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use burn::tensor::{DType, Device, Int, Tensor};
use burn_titan_kernels::device_memory::{DeviceMemory, cuda_index, float_memory, int_memory};

use super::engine::{self, Command, Job};
use super::error::NcclError;
use super::library::{self, ID};
use super::plan::{Operation, plan};
use crate::communicator::{Buffer, Communicator, Work};
use crate::host::beat::{Beat, NoResult};
use crate::host::{Call, CommError, Kind, Reduction};

/// The GPU of a rank. Clones are the same.
#[derive(Debug, Clone)]
pub struct NcclWorld {
    device: Device,
    commands: Sender<Command>,
    beat: Beat,
}

impl NcclWorld {
    /// The GPU of this rank; every rank of a host has another one.
    ///
    /// # Errors
    /// If NCCL is not installed, the device is none of NVIDIA's, or CUDA reports an error.
    pub fn new(device: &Device, timeout: Duration) -> Result<Self, NcclError> {
        let gpu =
            cuda_index(device).ok_or_else(|| NcclError::NoGpu { device: format!("{device:?}") })?;
        library::check()?;
        let (commands, queue) = mpsc::channel();
        let (ready, opened) = mpsc::channel();
        let beat = Beat::new();
        let seen = beat.clone();
        std::thread::Builder::new()
            .name("nccl".to_string())
            .spawn(move || engine::run(gpu, &queue, &ready, seen))?;
        let world = Self { device: device.clone(), commands, beat };
        world.wait(&opened, timeout, None)?;
        Ok(world)
    }

    /// The group of the ranks of `host`, all of which join. They wait for each other; ranks that are in several
    /// groups join them in the same order.
    ///
    /// # Errors
    /// If `host` fails, NCCL reports an error, or the others do not join in time.
    pub fn join(
        &self,
        host: Box<dyn Communicator>,
        timeout: Duration,
    ) -> Result<NcclCommunicator, CommError> {
        let (rank, size) = (host.rank(), host.size());
        let own = match rank {
            0 => library::new_id().map_err(|cause| CommError::Nccl { cause, call: None })?,
            _ => [0; ID],
        };
        let flex = (&Device::flex(), DType::U8);
        let id = host.broadcast(Tensor::<1, Int>::from_data(own, flex).into(), 0).wait()?;
        let bytes = id.int().into_data();
        let id = <[u8; ID]>::try_from(bytes.as_bytes())
            .map_err(|_| CommError::Closed("the group's number has another length".to_string()))?;
        let (reply, number) = mpsc::channel();
        self.tell(Command::Join { id, rank, size, reply });
        let group = self.wait(&number, timeout, None)?;
        let sequence = AtomicU64::new(0);
        Ok(NcclCommunicator { host, world: self.clone(), group, sequence, timeout })
    }

    fn tell(&self, command: Command) {
        // A thread that has ended drops the command, and the reply with it: whoever waits is told.
        let _ = self.commands.send(command);
    }

    fn wait<T>(
        &self,
        result: &Receiver<Result<T, CommError>>,
        timeout: Duration,
        call: Option<Call>,
    ) -> Result<T, CommError> {
        self.beat.wait(result, timeout).unwrap_or_else(|none| match none {
            NoResult::Ended => Err(CommError::Closed("NCCL's thread has ended".to_string())),
            NoResult::Stuck => {
                let seconds = timeout.as_secs_f64();
                let cause = format!("a call of the library takes longer than {seconds} s");
                Err(CommError::Nccl { cause, call })
            }
        })
    }
}

/// A group of ranks, each with a GPU of its own. Ranks that share several groups call their operations in one
/// order.
///
/// By the communicator over which the group came together go tensors elsewhere, and messages between two
/// ranks: NCCL's wait for the receiver, and two ranks that each wait for a message before they send one would wait
/// for ever.
///
/// Sums are taken in the order that NCCL chooses, those of f16 and bf16 in f32. Whether the maximum of a NaN is
/// NaN, NCCL leaves open. Reading a tensor's address waits for the device on the calling thread.
pub struct NcclCommunicator {
    host: Box<dyn Communicator>,
    world: NcclWorld,
    group: usize,
    /// The number of the last operation.
    sequence: AtomicU64,
    timeout: Duration,
}

impl NcclCommunicator {
    fn is_ours(&self, x: &Buffer) -> bool {
        x.device() == self.world.device
    }

    /// Begins an operation on `x` that gives `output` elements.
    fn start(
        &self,
        x: Buffer,
        output: usize,
        (kind, reduction): (Kind, Reduction),
        operation: &Operation,
    ) -> Work<Buffer> {
        let begun = || {
            let element = x.element()?;
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
            let count = x.elements().max(output) as u64;
            let call = Call { kind, element, reduction, root: 0, count, shape: 0, sequence };
            let into = x.empty_like(output);
            let ((x, input), (into, output)) = (memory(x, call)?, memory(into, call)?);
            let (reply, done) = mpsc::channel();
            let (group, timeout) = (self.group, self.timeout);
            let calls = plan(operation);
            self.world.tell(Command::Run(Job {
                group,
                call,
                calls,
                input,
                output,
                timeout,
                reply,
            }));
            Ok((x, into, done, call))
        };
        match begun() {
            Err(error) => Work::failed(error),
            Ok((x, into, done, call)) => {
                let (world, timeout) = (self.world.clone(), self.timeout);
                Work::pending(move || {
                    world.wait(&done, timeout, Some(call))?;
                    // Until now nobody may change the input in place.
                    drop(x);
                    Ok(into)
                })
            }
        }
    }

    /// Reduces in f32 what is added in halves.
    fn reduce(
        &self,
        x: Buffer,
        output: usize,
        (kind, reduction): (Kind, Reduction),
        operation: &Operation,
    ) -> Work<Buffer> {
        match x {
            Buffer::Float(x) if reduction != Reduction::Max && x.dtype() != DType::F32 => {
                let dtype = x.dtype();
                let wide = x.cast(DType::F32).into();
                self.start(wide, output, (kind, reduction), operation)
                    .map(move |sum| sum.float().cast(dtype).into())
            }
            x => self.start(x, output, (kind, reduction), operation),
        }
    }
}

impl Communicator for NcclCommunicator {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn all_reduce(&self, x: Buffer, reduction: Reduction) -> Work<Buffer> {
        if !self.is_ours(&x) {
            return self.host.all_reduce(x, reduction);
        }
        let count = x.elements();
        self.reduce(x, count, (Kind::AllReduce, reduction), &Operation::AllReduce(count))
    }

    fn all_gather(&self, shard: Buffer, lengths: &[usize]) -> Work<Buffer> {
        if !self.is_ours(&shard) {
            return self.host.all_gather(shard, lengths);
        }
        assert_eq!(shard.elements(), lengths[self.rank()], "the length of this rank's shard");
        let operation = Operation::AllGather(lengths.to_vec());
        self.start(shard, lengths.iter().sum(), (Kind::AllGather, Reduction::Sum), &operation)
    }

    fn reduce_scatter(
        &self,
        whole: Buffer,
        lengths: &[usize],
        reduction: Reduction,
    ) -> Work<Buffer> {
        if !self.is_ours(&whole) {
            return self.host.reduce_scatter(whole, lengths, reduction);
        }
        assert_eq!(whole.elements(), lengths.iter().sum::<usize>(), "the length of all ranges");
        let operation = Operation::ReduceScatter(lengths.to_vec());
        let own = lengths[self.rank()];
        self.reduce(whole, own, (Kind::ReduceScatter, reduction), &operation)
    }

    fn all_to_all(&self, x: Buffer, send: &[usize], receive: &[usize]) -> Work<Buffer> {
        if !self.is_ours(&x) {
            return self.host.all_to_all(x, send, receive);
        }
        assert_eq!(x.elements(), send.iter().sum::<usize>(), "the length of all ranges");
        let operation = Operation::AllToAll(send.to_vec(), receive.to_vec());
        self.start(x, receive.iter().sum(), (Kind::AllToAll, Reduction::Sum), &operation)
    }

    fn broadcast(&self, x: Buffer, root: usize) -> Work<Buffer> {
        if root >= self.size() {
            return Work::failed(CommError::NoSuchRank { rank: root, size: self.size() });
        }
        if !self.is_ours(&x) {
            return self.host.broadcast(x, root);
        }
        let count = x.elements();
        let operation = Operation::Broadcast { count, root };
        self.start(x, count, (Kind::Broadcast, Reduction::Sum), &operation)
    }

    fn send(&self, x: Buffer, to: usize) -> Work<()> {
        self.host.send(x, to)
    }

    fn receive(&self, like: Buffer, from: usize) -> Work<Buffer> {
        self.host.receive(like, from)
    }

    fn barrier(&self) -> Work<()> {
        self.host.barrier()
    }
}

fn memory(x: Buffer, call: Call) -> Result<(Buffer, DeviceMemory), CommError> {
    let shown = match x {
        Buffer::Float(x) => float_memory(x).map(|(x, memory)| (Buffer::Float(x), memory)),
        Buffer::Int(x) => int_memory(x).map(|(x, memory)| (Buffer::Int(x), memory)),
    };
    shown.map_err(|error| CommError::Nccl { cause: error.to_string(), call: Some(call) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_no_gpu_is_refused() {
        let error = NcclWorld::new(&Device::flex(), Duration::from_secs(1)).unwrap_err();
        let text = error.into_join_error().to_string();
        assert!(text.starts_with("NCCL exchanges the memory of NVIDIA's GPUs, but"), "{text}");
        assert!(text.ends_with("choose training.device=cuda or comm.backend=tcp"), "{text}");
    }
}
