//! Reading a Hugging Face folder.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{CONFIG_FILE, HfError, WEIGHTS_FILE, WEIGHTS_INDEX_FILE};
use crate::checkpoint::{FileError, HostTensor, TensorFile, TensorFileError, TensorView};

/// A Hugging Face folder: its config and its tensors, which are read by memory map.
#[derive(Debug)]
pub struct HfFolder {
    path: PathBuf,
    config: Value,
    shards: Vec<TensorFile>,
    /// Position in `shards` of each tensor.
    locations: BTreeMap<String, usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct WeightsIndex {
    weight_map: BTreeMap<String, String>,
}

impl HfFolder {
    /// Opens a folder with a `config.json` and either `model.safetensors` or the files that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`HfError`] for a missing file, JSON that cannot be understood, a torn file, a tensor that
    /// the index lists but its file lacks, or one that two files hold.
    pub fn open(path: &Path) -> Result<Self, HfError> {
        let remedy = "give a folder with a Hugging Face config.json and safetensors weights";
        let config = read_json(&path.join(CONFIG_FILE), remedy)?;
        let whole = path.join(WEIGHTS_FILE);
        let (shards, listed) = if whole.is_file() {
            (vec![TensorFile::open(&whole)?], None)
        } else {
            let (shards, weight_map) = open_shards(path)?;
            (shards, Some(weight_map))
        };
        let locations = locate_tensors(&shards)?;
        let folder = Self { path: path.to_path_buf(), config, shards, locations };
        if let Some(weight_map) = listed {
            folder.check_weight_map(&weight_map)?;
        }
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `config.json`, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// What `config.json` says.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.locations.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.locations.contains_key(name)
    }

    /// One tensor, without a copy.
    ///
    /// # Errors
    /// [`TensorFileError::MissingTensor`].
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, HfError> {
        let shard = self.locations.get(name).and_then(|&position| self.shards.get(position));
        match shard {
            Some(shard) => Ok(shard.view(name)?),
            None => Err(TensorFileError::missing(&self.path, name, self.names()).into()),
        }
    }

    /// A copy of one tensor.
    ///
    /// # Errors
    /// [`TensorFileError::MissingTensor`].
    pub fn read(&self, name: &str) -> Result<HostTensor, HfError> {
        Ok(self.view(name)?.to_tensor())
    }

    fn check_weight_map(&self, weight_map: &BTreeMap<String, String>) -> Result<(), HfError> {
        for (name, shard) in weight_map {
            let file = self.locations.get(name).and_then(|&position| self.shards.get(position));
            if file.is_none_or(|file| file.path() != self.path.join(shard)) {
                return Err(HfError::AbsentTensor {
                    index: self.path.join(WEIGHTS_INDEX_FILE),
                    name: name.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(())
    }
}

fn open_shards(folder: &Path) -> Result<(Vec<TensorFile>, BTreeMap<String, String>), HfError> {
    let path = folder.join(WEIGHTS_INDEX_FILE);
    let remedy = "there is no model.safetensors either; fetch the weights, or convert \
                  pytorch_model.bin to safetensors";
    let index = WeightsIndex::deserialize(read_json(&path, remedy)?)
        .map_err(|error| HfError::Json { path: path.clone(), reason: error.to_string() })?;
    let mut names: Vec<&String> = index.weight_map.values().collect();
    names.sort();
    names.dedup();
    let mut shards = Vec::with_capacity(names.len());
    for name in names {
        if Path::new(name).file_name() != Some(name.as_ref()) {
            let reason = format!("`{name}` is not the name of a file");
            return Err(HfError::Json { path, reason });
        }
        shards.push(TensorFile::open(&folder.join(name))?);
    }
    Ok((shards, index.weight_map))
}

fn locate_tensors(shards: &[TensorFile]) -> Result<BTreeMap<String, usize>, HfError> {
    let mut locations = BTreeMap::new();
    for (position, shard) in shards.iter().enumerate() {
        for name in shard.names() {
            let Some(earlier) = locations.insert(name.to_string(), position) else { continue };
            let (path, name) = (shard.path().to_path_buf(), name.to_string());
            let other = shards.get(earlier).map(|file| file.path().display().to_string());
            return Err(HfError::DuplicateTensor { path, name, other });
        }
    }
    Ok(locations)
}

fn read_json(path: &Path, remedy: &'static str) -> Result<Value, HfError> {
    let text = std::fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => HfError::Missing { path: path.to_path_buf(), remedy },
        _ => FileError::new(path, "read the file", error).into(),
    })?;
    serde_json::from_slice(&text).map_err(|error| {
        let reason = format!("not valid JSON: {error}");
        HfError::Json { path: path.to_path_buf(), reason }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::checkpoint::write_tensor_file;

    fn folder() -> TempDir {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{\"model_type\": \"x\"}").unwrap();
        folder
    }

    fn write(folder: &TempDir, file: &str, names: &[&str]) {
        let tensors: Vec<HostTensor> = names
            .iter()
            .map(|name| HostTensor::from_f32(*name, &[2], &[1.0, name.len() as f32]).unwrap())
            .collect();
        write_tensor_file(&folder.path().join(file), &tensors, &[("format", "pt")]).unwrap();
    }

    fn write_index(folder: &TempDir, map: Value) {
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        fs::write(folder.path().join(WEIGHTS_INDEX_FILE), index.to_string()).unwrap();
    }

    /// The message of a failed open, less the folder's path.
    fn refusal(folder: &TempDir) -> String {
        let message = HfFolder::open(folder.path()).unwrap_err().to_string();
        message.replace(&format!("{}/", folder.path().display()), "")
    }

    #[test]
    fn one_file_or_several() {
        let folder = folder();
        write(&folder, "model.safetensors", &["a", "bb"]);
        let one = HfFolder::open(folder.path()).unwrap();
        assert_eq!(one.names().collect::<Vec<_>>(), ["a", "bb"]);
        assert_eq!(one.config()["model_type"], "x");
        assert_eq!(one.read("bb").unwrap().to_f32().unwrap(), [1.0, 2.0]);
        assert!(one.contains("a") && !one.contains("c"));
        fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        write(&folder, "m1.safetensors", &["bb"]);
        write(&folder, "m2.safetensors", &["a", "ccc"]);
        write_index(&folder, json!({"bb": "m1.safetensors", "a": "m2.safetensors"}));
        let several = HfFolder::open(folder.path()).unwrap();
        assert_eq!(several.names().collect::<Vec<_>>(), ["a", "bb", "ccc"]);
        assert_eq!(several.read("bb").unwrap(), one.read("bb").unwrap());
        assert_eq!(
            several.read("cc").unwrap_err().to_string(),
            format!("{}: no tensor `cc` (did you mean `ccc`?)", folder.path().display())
        );
    }

    #[test]
    fn broken_folders_are_refused_by_name() {
        let folder = folder();
        assert_eq!(
            refusal(&folder),
            "model.safetensors.index.json: no such file: there is no model.safetensors either; \
             fetch the weights, or convert pytorch_model.bin to safetensors"
        );
        write_index(&folder, json!({"a": "m1.safetensors", "b": "m2.safetensors"}));
        write(&folder, "m1.safetensors", &["a"]);
        assert_eq!(
            refusal(&folder),
            "m2.safetensors: no such file: check the path, or fetch the file again"
        );
        write(&folder, "m2.safetensors", &["c"]);
        assert_eq!(
            refusal(&folder),
            "model.safetensors.index.json: tensor `b` should be in m2.safetensors, but is not: \
             fetch both files again, from the same version"
        );
        write(&folder, "m2.safetensors", &["a", "b"]);
        assert_eq!(
            refusal(&folder),
            "m2.safetensors: tensor `a` is given twice, also in m1.safetensors: keep one of them"
        );
        fs::write(folder.path().join("m2.safetensors"), [0; 5]).unwrap();
        assert_eq!(
            refusal(&folder),
            "m2.safetensors: the file is torn: 5 bytes, but its header alone needs 8: fetch or \
             save the file again"
        );
        write_index(&folder, json!({"a": "../m1.safetensors"}));
        assert_eq!(
            refusal(&folder),
            "model.safetensors.index.json: `../m1.safetensors` is not the name of a file: fetch \
             the file again"
        );
        write_index(&folder, json!([1]));
        assert!(refusal(&folder).contains("invalid type: sequence, expected a map"));
        fs::write(folder.path().join("config.json"), "{").unwrap();
        assert_eq!(
            refusal(&folder),
            "config.json: not valid JSON: EOF while parsing an object at line 1 column 1: fetch \
             the file again"
        );
        fs::remove_file(folder.path().join("config.json")).unwrap();
        assert_eq!(
            refusal(&folder),
            "config.json: no such file: give a folder with a Hugging Face config.json and \
             safetensors weights"
        );
    }
}
