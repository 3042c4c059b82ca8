//! The files that one rank writes into a checkpoint.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::deferred::DeferredTensor;
use super::durable::{DEFAULT_CHUNK_BYTES, FileDigest};
use super::error::CheckpointError;
use super::record::{FileRecord, PieceRecord, TensorGroup, TensorRecord};
use super::tensor_file::{begin, header};

/// Largest safetensors file that is written, in bytes, unless a single tensor is larger.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 4 << 30;

/// How tensors are laid out in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Size above which tensors go to a further file, in bytes.
    pub max_file_bytes: u64,
    /// Bytes of a file that have a checksum of their own.
    pub chunk_bytes: u64,
}

impl Default for Layout {
    fn default() -> Self {
        Self { max_file_bytes: DEFAULT_MAX_FILE_BYTES, chunk_bytes: DEFAULT_CHUNK_BYTES }
    }
}

/// What a rank wrote, as it goes to rank 0.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct RankRecords {
    pub(super) files: BTreeMap<String, FileRecord>,
    pub(super) tensors: BTreeMap<String, TensorRecord>,
}

impl RankRecords {
    /// Adds what another rank wrote. Gives what is wrong.
    pub(super) fn merge(&mut self, other: Self) -> Result<(), String> {
        for (name, file) in other.files {
            if self.files.insert(name.clone(), file).is_some() {
                return Err(format!("two ranks wrote `{name}`"));
            }
        }
        for (name, record) in other.tensors {
            let Some(known) = self.tensors.get_mut(&name) else {
                self.tensors.insert(name, record);
                continue;
            };
            let of = |record: &TensorRecord| (record.group, record.dtype, record.shape.clone());
            if of(known) != of(&record) {
                return Err(format!(
                    "tensor `{name}`: one rank has {:?}, another {:?}",
                    of(known),
                    of(&record)
                ));
            }
            known.pieces.extend(record.pieces);
        }
        Ok(())
    }
}

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writer {
    pub(super) rank: usize,
    pub(super) size: usize,
}

/// Writes this rank's parts of the tensors of a group to files in `folder`.
pub(super) fn write_group<E: From<CheckpointError>>(
    folder: &Path,
    writer: Writer,
    layout: Layout,
    group: TensorGroup,
    tensors: Vec<DeferredTensor<'_, E>>,
    records: &mut RankRecords,
) -> Result<(), E> {
    for tensor in &tensors {
        let (dtype, shape) = (tensor.part.dtype, tensor.part.shape.clone());
        let record = TensorRecord { group, dtype, shape, pieces: vec![] };
        records.tensors.insert(tensor.part.name.clone(), record);
    }
    // A part without elements has no place in a file.
    let parts = tensors.into_iter().filter(|tensor| tensor.part.region.elements() > 0);
    let files = split(parts.collect(), layout.max_file_bytes);
    // The only rank has a file of each group, so that the folder looks the same whatever is in it.
    let files: Vec<_> =
        files.into_iter().filter(|part| writer.size == 1 || !part.is_empty()).collect();
    let count = files.len();
    for (number, part) in files.into_iter().enumerate() {
        let file = file_name(group.file_stem(), writer, number, count);
        let digest = write_parts(folder, &file, part, layout.chunk_bytes, records)?;
        records.files.insert(file, digest.into());
    }
    Ok(())
}

/// Writes one file, holding one tensor at a time. Within the file, wider element types come first, so
/// that every tensor is aligned to its element.
fn write_parts<E: From<CheckpointError>>(
    folder: &Path,
    file: &str,
    mut tensors: Vec<DeferredTensor<'_, E>>,
    chunk_bytes: u64,
    records: &mut RankRecords,
) -> Result<FileDigest, E> {
    tensors.sort_by_key(|tensor| Reverse(tensor.part.dtype.size()));
    let shapes: Vec<Vec<usize>> = tensors.iter().map(|tensor| tensor.part.region.shape()).collect();
    let entries = tensors.iter().zip(&shapes).map(|(tensor, shape)| {
        let part = &tensor.part;
        (part.name.as_str(), part.dtype, shape.as_slice(), part.bytes())
    });
    let header = header(entries, &[]);
    let failed = CheckpointError::from;
    let mut writer = begin(&folder.join(file), &header, chunk_bytes).map_err(failed)?;
    for tensor in tensors {
        let part = &tensor.part;
        if let Some(record) = records.tensors.get_mut(&part.name) {
            let offset = writer.position();
            let piece = PieceRecord::new(file.into(), offset, &part.shape, &part.region);
            record.pieces.push(piece);
        }
        tensor.read()?.write(&mut writer).map_err(failed)?;
    }
    Ok(writer.finish().map_err(failed)?)
}

/// Cuts `tensors` into runs of at most `max_bytes`, each of at least one tensor; an empty list is
/// one empty run.
fn split<E>(
    tensors: Vec<DeferredTensor<'_, E>>,
    max_bytes: u64,
) -> Vec<Vec<DeferredTensor<'_, E>>> {
    let mut files = Vec::new();
    let (mut file, mut bytes) = (Vec::new(), 0u64);
    for tensor in tensors {
        let size = tensor.part.bytes() as u64;
        if !file.is_empty() && bytes.saturating_add(size) > max_bytes {
            files.push(std::mem::take(&mut file));
            bytes = 0;
        }
        bytes = bytes.saturating_add(size);
        file.push(tensor);
    }
    files.push(file);
    files
}

/// `model.safetensors` of the only rank, `model-rank-00003.safetensors` of one of several, and
/// `model-00001-of-00003.safetensors` or `model-rank-00003-00001-of-00003.safetensors` where the rank has
/// several.
fn file_name(stem: &str, writer: Writer, number: usize, count: usize) -> String {
    let rank = match writer.size {
        1 => String::new(),
        _ => format!("-rank-{:05}", writer.rank),
    };
    match count {
        1 => format!("{stem}{rank}.safetensors"),
        _ => format!("{stem}{rank}-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::HostTensor;

    #[test]
    fn files_hold_at_most_the_limit() {
        let tensor = |n: &usize| HostTensor::from_f32("t", &[*n], &vec![0.0; *n]).unwrap().into();
        let sizes = |limit| -> Vec<usize> {
            let tensors: Vec<DeferredTensor> = [3, 1, 4, 9, 1, 1].iter().map(tensor).collect();
            split(tensors, limit).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(u64::MAX), [6]);
        assert_eq!(sizes(16), [2, 1, 1, 2]);
        assert_eq!(sizes(0), [1; 6]);
        assert_eq!(split::<CheckpointError>(vec![], 16).len(), 1);
    }

    #[test]
    fn names_tell_the_rank() {
        let name =
            |rank, size, number, count| file_name("model", Writer { rank, size }, number, count);
        assert_eq!(name(0, 1, 0, 1), "model.safetensors");
        assert_eq!(name(0, 1, 9, 12), "model-00010-of-00012.safetensors");
        assert_eq!(name(0, 2, 0, 1), "model-rank-00000.safetensors");
        assert_eq!(name(3, 8, 1, 2), "model-rank-00003-00002-of-00002.safetensors");
    }
}
