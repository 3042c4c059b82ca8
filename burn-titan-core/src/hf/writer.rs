//! Writing a Hugging Face folder, one tensor at a time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{CONFIG_FILE, HfError, WEIGHTS_FILE, WEIGHTS_INDEX_FILE};
use crate::checkpoint::{FileError, HostTensor, TensorSpool, sync_folder, write_file};

/// Largest shard that is written, in bytes, unless a single tensor is larger: what `transformers`
/// takes as well.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Header entry that tells `transformers` the tensors are those of a PyTorch model.
const METADATA: [(&str, &str); 1] = [("format", "pt")];

/// The tensors of the shard that is not written yet.
const SPOOL_FILE: &str = "tensors.partial";

/// Writes a Hugging Face folder. No tensor is held in memory; the folder gets its name when
/// all is written, and is deleted where the writer is dropped before.
#[derive(Debug)]
pub struct HfWriter {
    path: PathBuf,
    partial: PathBuf,
    max_shard_bytes: u64,
    /// `None` once all is written.
    pending: Option<TensorSpool>,
    total_bytes: u64,
    /// The shard of each tensor, counted from 0.
    shards: BTreeMap<String, usize>,
    shard_count: usize,
    finished: bool,
}

impl HfWriter {
    /// Begins the folder `path`, which must not exist or be empty, with its `config.json`. A shard
    /// has at most `max_shard_bytes` of tensors, but at least one tensor.
    ///
    /// # Errors
    /// [`HfError::Exists`], or what the disk refuses.
    pub fn create(path: &Path, config: &Value, max_shard_bytes: u64) -> Result<Self, HfError> {
        // Without a trailing slash, so that a sibling can be named.
        let path: PathBuf = path.components().collect();
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(name);
        // An empty folder of that name is as good as none; rename will replace it.
        if fs::symlink_metadata(&path).is_ok() && fs::remove_dir(&path).is_err() {
            return Err(HfError::Exists { path });
        }
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .map_err(|error| FileError::new(&partial, "delete the folder", error))?;
        }
        fs::create_dir_all(&partial)
            .map_err(|error| FileError::new(&partial, "create the folder", error))?;
        let mut writer = Self {
            path,
            partial,
            max_shard_bytes,
            pending: None,
            total_bytes: 0,
            shards: BTreeMap::new(),
            shard_count: 0,
            finished: false,
        };
        writer.pending = Some(TensorSpool::create(&writer.partial.join(SPOOL_FILE))?);
        writer.add_file(CONFIG_FILE, format!("{config:#}\n").as_bytes())?;
        Ok(writer)
    }

    /// Adds a further file, for example `tokenizer.json`.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn add_file(&self, name: &str, contents: &[u8]) -> Result<(), HfError> {
        write_file(&self.partial.join(name), contents)?;
        Ok(())
    }

    /// Adds a tensor under its name.
    ///
    /// # Errors
    /// [`HfError::DuplicateTensor`], or what the disk refuses.
    pub fn write(&mut self, tensor: HostTensor) -> Result<(), HfError> {
        let bytes = tensor.data().len() as u64;
        let limit = self.max_shard_bytes;
        let is_full = |spool: &TensorSpool| !spool.is_empty() && spool.bytes() + bytes > limit;
        if self.pending.as_ref().is_some_and(is_full) {
            self.write_shard()?;
        }
        let name = tensor.name().to_string();
        if self.shards.insert(name.clone(), self.shard_count).is_some() {
            return Err(HfError::DuplicateTensor { path: self.path.clone(), name, other: None });
        }
        self.total_bytes += bytes;
        if let Some(pending) = &mut self.pending {
            pending.push(&tensor)?;
        }
        Ok(())
    }

    /// Writes what is left and gives the folder its name.
    ///
    /// # Errors
    /// What the disk refuses; nothing is left behind then.
    pub fn finish(mut self) -> Result<(), HfError> {
        if self.pending.as_ref().is_some_and(|pending| !pending.is_empty()) || self.shard_count == 0
        {
            self.write_shard()?;
        }
        self.pending = None;
        for number in 0..self.shard_count {
            let name = self.partial.join(shard_name(number, self.shard_count));
            let unnumbered = self.partial.join(unnumbered_name(number));
            fs::rename(&unnumbered, name)
                .map_err(|error| FileError::new(&unnumbered, "rename the file", error))?;
        }
        if self.shard_count > 1 {
            self.write_index()?;
        }
        sync_folder(&self.partial)?;
        fs::rename(&self.partial, &self.path)
            .map_err(|error| FileError::new(&self.path, "rename the folder", error))?;
        self.finished = true;
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => Ok(sync_folder(parent)?),
            _ => Ok(sync_folder(Path::new("."))?),
        }
    }

    fn write_shard(&mut self) -> Result<(), HfError> {
        let path = self.partial.join(unnumbered_name(self.shard_count));
        if let Some(pending) = &mut self.pending {
            pending.write_tensor_file(&path, &METADATA)?;
        }
        self.shard_count += 1;
        Ok(())
    }

    fn write_index(&self) -> Result<(), HfError> {
        let weight_map: BTreeMap<&String, String> = self
            .shards
            .iter()
            .map(|(name, &number)| (name, shard_name(number, self.shard_count)))
            .collect();
        let metadata = json!({"total_size": self.total_bytes});
        let index = json!({"metadata": metadata, "weight_map": weight_map});
        self.add_file(WEIGHTS_INDEX_FILE, format!("{index:#}\n").as_bytes())
    }
}

impl Drop for HfWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing can be done about a failure here; the name says that it is unfinished.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Name of a shard while their number is not known.
fn unnumbered_name(number: usize) -> String {
    format!("model-{:05}.safetensors.partial", number + 1)
}

fn shard_name(number: usize, count: usize) -> String {
    match count {
        1 => WEIGHTS_FILE.into(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;
    use crate::hf::HfFolder;

    fn tensor(name: &str, values: &[f32]) -> HostTensor {
        HostTensor::from_f32(name, &[values.len()], values).unwrap()
    }

    fn names_below(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempdir().unwrap();
        for (limit, count) in [(u64::MAX, 1), (16, 2), (0, 3)] {
            let path = folder.path().join(format!("out-{count}"));
            let config = json!({"model_type": "x"});
            let mut writer = HfWriter::create(&path, &config, limit).unwrap();
            for (name, values) in [("b", &[1.0, 2.0][..]), ("a", &[3.0]), ("c", &[4.0, 5.0])] {
                writer.write(tensor(name, values)).unwrap();
            }
            writer.add_file("tokenizer.json", b"{}").unwrap();
            assert!(!path.exists());
            writer.finish().unwrap();
            let files = names_below(&path);
            assert_eq!(files.len(), if count == 1 { 3 } else { 3 + count }, "{files:?}");
            let read = HfFolder::open(&path).unwrap();
            assert_eq!(read.config(), &config);
            assert_eq!(read.read("c").unwrap(), tensor("c", &[4.0, 5.0]));
            assert_eq!(read.names().count(), 3);
        }
        let index = fs::read(folder.path().join("out-2").join(WEIGHTS_INDEX_FILE)).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["metadata"]["total_size"], 20);
        assert_eq!(index["weight_map"]["c"], "model-00002-of-00002.safetensors");
    }

    #[test]
    fn nothing_is_overwritten_or_left_behind() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("out");
        fs::create_dir(&path).unwrap();
        let mut writer = HfWriter::create(&path, &json!({}), 0).unwrap();
        writer.write(tensor("a", &[1.0])).unwrap();
        assert_eq!(
            writer.write(tensor("a", &[1.0])).unwrap_err().to_string(),
            format!("{}: tensor `a` is given twice: keep one of them", path.display())
        );
        drop(writer);
        assert!(names_below(folder.path()).is_empty());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        assert_eq!(
            HfWriter::create(&path, &json!({}), 0).unwrap_err().to_string(),
            format!("{}: the folder exists already: choose another, or delete it", path.display())
        );
        assert_eq!(names_below(&path), ["file"]);
    }
}
