//! Ranks as threads, and tensors spread over them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;

/// A rank among threads.
pub(super) struct ThreadWriter {
    rank: usize,
    size: usize,
    /// From each rank on rank 0, or else to it.
    from_all: Vec<Receiver<Vec<u8>>>,
    to_first: Sender<Vec<u8>>,
    to_all: Vec<Sender<Vec<u8>>>,
    from_first: Receiver<Vec<u8>>,
}

impl ThreadWriter {
    pub(super) fn world(size: usize) -> Vec<Self> {
        let (to_first, mut from_all): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
        let (mut to_all, from_first): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
        let ends = to_first.into_iter().zip(from_first).enumerate();
        let writer = |(rank, (to_first, from_first))| {
            let (from_all, to_all) = (std::mem::take(&mut from_all), std::mem::take(&mut to_all));
            Self { rank, size, from_all, to_first, to_all, from_first }
        };
        ends.map(writer).collect()
    }
}

impl Writers for ThreadWriter {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather_to_first(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.to_first.send(bytes).map_err(|_| ExchangeError::new("rank 0 is lost"))?;
        self.from_all.iter().map(receive).collect()
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, ExchangeError> {
        for to in &self.to_all {
            to.send(bytes.clone()).map_err(|_| ExchangeError::new("a rank is lost"))?;
        }
        receive(&self.from_first)
    }
}

fn receive(from: &Receiver<Vec<u8>>) -> Result<Vec<u8>, ExchangeError> {
    from.recv_timeout(Duration::from_secs(60)).map_err(ExchangeError::new)
}

const SHAPES: [(&str, &[usize]); 7] = [
    ("a", &[13, 7]),
    ("b", &[5]),
    ("c", &[3, 4, 5]),
    ("scalar", &[]),
    ("empty", &[0, 4]),
    ("long", &[1, 31]),
    ("narrow", &[17, 1]),
];

/// How tensors are spread over ranks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spread {
    /// Ranges of the whole tensor, of unequal lengths.
    Flat,
    /// Ranges of a flat bucket of all tensors: most tensors are on one rank.
    Bucket,
    /// Boxes along the last dim.
    Columns,
    /// Boxes along the last dim of two columns of ranks, which are cut into ranges.
    Grid,
    /// All on the last rank.
    Last,
}

pub(super) const SPREADS: [Spread; 5] =
    [Spread::Flat, Spread::Bucket, Spread::Columns, Spread::Grid, Spread::Last];

impl Spread {
    pub(super) fn region(self, shape: &[usize], before: usize, rank: usize, size: usize) -> Region {
        let elements: usize = shape.iter().product();
        let cut = |total: usize, part: usize, parts: usize| -> std::ops::Range<usize> {
            // Unequal: the first parts are the shortest.
            let end = |part: usize| total * part * (part + 1) / (parts * (parts + 1));
            end(part)..end(part + 1)
        };
        let columns = |part: usize, parts: usize| match shape.split_last() {
            None => (vec![], vec![], if part == 0 { 0..1 } else { 0..0 }),
            Some((last, outer)) => {
                let range = cut(*last, part, parts);
                let (mut start, mut length) = (vec![0; outer.len()], outer.to_vec());
                start.push(range.start);
                length.push(range.len());
                let volume = length.iter().product();
                (start, length, 0..volume)
            }
        };
        match self {
            Self::Flat => Region::flat(shape, cut(elements, rank, size)).unwrap(),
            Self::Bucket => {
                let total = SHAPES.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
                let own = cut(total, rank, size);
                let place = |at: usize| at.clamp(before, before + elements) - before;
                Region::flat(shape, place(own.start)..place(own.end)).unwrap()
            }
            Self::Columns => {
                let (start, length, range) = columns(rank, size);
                Region::new(&start, &length, range).unwrap()
            }
            Self::Grid => {
                let (start, length, range) = columns(rank % size.min(2), size.min(2));
                let rows = (size - rank % size.min(2)).div_ceil(size.min(2));
                let part = cut(range.len(), rank / size.min(2), rows);
                Region::new(&start, &length, part).unwrap()
            }
            Self::Last if rank + 1 == size => Region::whole(shape).unwrap(),
            Self::Last => Region::flat(shape, 0..0).unwrap(),
        }
    }
}

/// A tensor's values, NaNs among them: each element's bits are its own.
fn values(name: &str, shape: &[usize], step: u64) -> Vec<f32> {
    let seed = name.bytes().map(u32::from).sum::<u32>().wrapping_mul(0x9e37_79b9);
    let elements: usize = shape.iter().product();
    let bits = |i: usize| (i as u32).wrapping_mul(0x85eb_ca6b) ^ seed ^ step as u32;
    (0..elements).map(|i| f32::from_bits(bits(i))).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn named(group: TensorGroup) -> impl Iterator<Item = (String, &'static [usize], usize)> {
    let mut before = 0;
    SHAPES.into_iter().map(move |(name, shape)| {
        let start = before;
        before += shape.iter().product::<usize>();
        let name = match group {
            TensorGroup::Model => name.to_string(),
            TensorGroup::Optimizer => format!("{name}.exp_avg"),
        };
        (name, shape, start)
    })
}

/// This rank's parts of all tensors.
pub(super) fn parts(
    group: TensorGroup,
    step: u64,
    spread: Spread,
    rank: usize,
    size: usize,
) -> Vec<DeferredTensor<'static>> {
    named(group)
        .map(|(name, shape, before)| {
            let region = spread.region(shape, before, rank, size);
            let whole = Region::whole(shape).unwrap();
            let all = values(&name, shape, step);
            let mut own = vec![0.0; region.elements()];
            for run in whole.runs(&region) {
                own[run.target..][..run.length].copy_from_slice(&all[run.source..][..run.length]);
            }
            DeferredTensor::f32_region(name, shape, region, move || own).unwrap()
        })
        .collect()
}

/// Saves on `size` ranks at once; `model` makes a rank's parts of the model.
pub(super) fn save_with(
    folder: &Path,
    step: u64,
    spread: Spread,
    size: usize,
    model: impl Fn(usize) -> Vec<DeferredTensor<'static>> + Sync,
) -> Vec<Result<PathBuf, CheckpointError>> {
    let rank = |writer: ThreadWriter| {
        let rank = writer.rank();
        let content = CheckpointContent {
            step,
            model: model(rank),
            optimizer: Some(parts(TensorGroup::Optimizer, step, spread, rank, size)),
            state: &json!({"step": step}),
            config_yaml: "run:\n  name: x\n",
            further_files: &[],
            layout: Layout { max_file_bytes: 200, chunk_bytes: 128 },
        };
        save_among(&writer, folder, 2, content)
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ThreadWriter::world(size)
            .into_iter()
            .map(|writer| scope.spawn(|| rank(writer)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

pub(super) fn save_on(
    folder: &Path,
    step: u64,
    spread: Spread,
    size: usize,
) -> Vec<Result<PathBuf, CheckpointError>> {
    save_with(folder, step, spread, size, |rank| {
        parts(TensorGroup::Model, step, spread, rank, size)
    })
}

/// Checks all tensors of a step's checkpoint, as `size` ranks read it.
pub(super) fn check_on(path: &Path, step: u64, spread: Spread, size: usize) {
    for rank in 0..size {
        let checkpoint = open(path).unwrap();
        assert_eq!(checkpoint.step(), step);
        for group in [TensorGroup::Model, TensorGroup::Optimizer] {
            for (name, shape, before) in named(group) {
                let region = spread.region(shape, before, rank, size);
                let all = values(&name, shape, step);
                let mut wanted = vec![0.0; region.elements()];
                for run in Region::whole(shape).unwrap().runs(&region) {
                    wanted[run.target..][..run.length]
                        .copy_from_slice(&all[run.source..][..run.length]);
                }
                let found = checkpoint.region_f32(&name, shape, &region).unwrap();
                assert_eq!(bits(&found), bits(&wanted), "{name} on rank {rank} of {size}");
                let whole = checkpoint.tensor_of(&name, HostDtype::F32, shape).unwrap();
                assert_eq!(bits(&whole.to_f32().unwrap()), bits(&all), "{name}");
            }
        }
    }
}
