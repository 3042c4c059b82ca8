//! The ranks of a run as the writers of its checkpoints.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_titan_parallel::{Buffer, CommError, Communicator};

use crate::checkpoint::{ExchangeError, Writers};

/// The ranks of a communicator, which is used for nothing else. It waits for the slowest rank to write its
/// part, so that its timeout must be longer than that takes.
pub struct RankWriters(Box<dyn Communicator>);

impl RankWriters {
    /// The ranks of `communicator`.
    pub fn new(communicator: Box<dyn Communicator>) -> Self {
        Self(communicator)
    }

    /// Longest message that is exchanged at once, in bytes.
    const PART: usize = 64 << 20;

    /// The number of bytes that each rank has.
    fn lengths(&self, own: usize) -> Result<Vec<usize>, CommError> {
        let shares = vec![size_of::<u64>(); self.size()];
        let own = buffer((own as u64).to_le_bytes().to_vec());
        let all = bytes(self.0.all_gather(own, &shares).wait()?)?;
        let length = |bytes: &[u8; 8]| usize::try_from(u64::from_le_bytes(*bytes));
        let lengths = all.as_chunks::<8>().0.iter().map(length).collect::<Result<_, _>>();
        lengths.map_err(|_| CommError::Closed("a message is longer than memory".into()))
    }
}

impl Writers for RankWriters {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn gather_to_first(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let lengths = self.lengths(own.len()).map_err(ExchangeError::new)?;
        if self.rank() > 0 {
            for part in own.chunks(Self::PART) {
                let sent = self.0.send(buffer(part.to_vec()), 0).wait();
                sent.map_err(ExchangeError::new)?;
            }
            return Ok(vec![]);
        }
        let mut all = vec![own];
        for (from, length) in lengths.into_iter().enumerate().skip(1) {
            let mut message = Vec::new();
            while message.len() < length {
                let part = vec![0; (length - message.len()).min(Self::PART)];
                let part = self.0.receive(buffer(part), from).wait().and_then(bytes);
                message.extend(part.map_err(ExchangeError::new)?);
            }
            all.push(message);
        }
        Ok(all)
    }

    fn broadcast(&self, own: Vec<u8>) -> Result<Vec<u8>, ExchangeError> {
        let lengths = self.lengths(own.len()).map_err(ExchangeError::new)?;
        let length = lengths.first().copied().unwrap_or_default();
        let mut message = Vec::new();
        while message.len() < length {
            let range = message.len()..length.min(message.len() + Self::PART);
            let part = match self.rank() {
                0 => own[range].to_vec(),
                _ => vec![0; range.len()],
            };
            let part = self.0.broadcast(buffer(part), 0).wait().and_then(bytes);
            message.extend(part.map_err(ExchangeError::new)?);
        }
        Ok(message)
    }
}

/// Bytes as a tensor in host memory.
fn buffer(bytes: Vec<u8>) -> Buffer {
    let length = bytes.len();
    let data = TensorData::from_bytes_vec(bytes, [length], DType::U8);
    Tensor::<1, Int>::from_data(data, (&burn_titan_kernels::device::flex(), DType::U8)).into()
}

fn bytes(buffer: Buffer) -> Result<Vec<u8>, CommError> {
    let data = buffer.int().into_data();
    data.try_into_vec::<u8>().map_err(|error| CommError::Dtype(format!("{error:?}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use burn_titan_parallel::World;
    use serde_json::json;

    use super::*;
    use crate::checkpoint::{
        self, CheckpointContent, CheckpointError, DeferredTensor, Layout, Region,
    };

    fn on_ranks<T: Send>(size: usize, body: impl Fn(RankWriters) -> T + Sync) -> Vec<T> {
        let members: Vec<usize> = (0..size).collect();
        std::thread::scope(|scope| {
            let worlds = World::local(size, Duration::from_secs(60)).into_iter();
            let ranks: Vec<_> = worlds
                .map(|world| {
                    let (body, members) = (&body, &members);
                    scope.spawn(move || {
                        let communicator = world.communicator("checkpoint", members).unwrap();
                        body(RankWriters::new(communicator))
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn messages_of_any_length_arrive() {
        let message = |rank: usize| vec![rank as u8; [0, 3, 70 << 20, 1][rank]];
        for size in 1..=4 {
            let ends = on_ranks(size, |writers| {
                let rank = writers.rank();
                assert_eq!(writers.size(), size);
                let gathered = writers.gather_to_first(message(rank)).unwrap();
                // What the others give does not count.
                let long = if rank == 0 { vec![7; 65 << 20] } else { message(rank) };
                let empty = writers.broadcast(message(rank)).unwrap();
                (gathered, writers.broadcast(long).unwrap(), empty)
            });
            for (rank, (gathered, long, empty)) in ends.into_iter().enumerate() {
                let wanted = if rank == 0 { (0..size).map(message).collect() } else { vec![] };
                assert!(gathered == wanted, "rank {rank} of {size}");
                assert!(long == vec![7; 65 << 20] && empty.is_empty());
            }
        }
    }

    #[test]
    fn ranks_save_together() {
        let folder = tempfile::tempdir().unwrap();
        let save = |writers: RankWriters, step: u64, give: usize| {
            let rank = writers.rank();
            let region = Region::flat(&[10], rank * 4..10.min(rank * 4 + 4)).unwrap();
            let values = vec![rank as f32; region.elements().min(give)];
            let part = DeferredTensor::f32_region("w", &[10], region, || values).unwrap();
            let content = CheckpointContent {
                step,
                model: vec![part],
                optimizer: Some(vec![]),
                state: &json!(null),
                config_yaml: "",
                further_files: &[],
                layout: Layout::default(),
            };
            checkpoint::save_among(&writers, folder.path(), 0, content)
        };
        let saved: Vec<Result<_, CheckpointError>> = on_ranks(3, |writers| save(writers, 1, 9));
        let path = folder.path().join("step-00000001");
        assert!(saved.iter().all(|saved| saved.as_ref().unwrap() == &path));
        let values = checkpoint::open(&path).unwrap().tensor("w").unwrap().to_f32().unwrap();
        assert_eq!(values, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0]);
        // Rank 2 has two elements to give, the others four.
        let failed = on_ranks(3, |writers| save(writers, 2, 3));
        let messages = failed.into_iter().map(|result| result.unwrap_err().to_string());
        let messages: Vec<String> = messages.collect();
        assert!(messages[0].starts_with("tensor `w`: 12 bytes of data"), "{messages:?}");
        assert_eq!(messages[2], format!("rank 0 could not save its part: {}", messages[0]));
        assert_eq!(checkpoint::latest(folder.path()).unwrap().unwrap().path, path);
    }
}
