//! The reference numbers in `tests/golden`, whose README says how they were made.

use std::path::{Path, PathBuf};

use burn_titan_core::checkpoint::{HostDtype, TensorFile};
use serde_json::Value;

/// A file or folder of `tests/golden`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A JSON file of `tests/golden`.
///
/// # Panics
/// If it is not there or is no JSON.
pub fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(path(name)).expect("a golden file");
    serde_json::from_str(&text).expect("a golden file of JSON")
}

/// A JSON list of numbers.
///
/// # Panics
/// If it is something else.
pub fn numbers(value: &Value) -> Vec<f64> {
    let number = |value: &Value| value.as_f64().expect("a number");
    value.as_array().expect("a list of numbers").iter().map(number).collect()
}

/// A safetensors file of `tests/golden`.
pub struct Tensors(TensorFile);

impl Tensors {
    /// Opens a file.
    ///
    /// # Panics
    /// If it is not there or is no safetensors file.
    pub fn open(name: &str) -> Self {
        Self(TensorFile::open(&path(name)).expect("a golden file of tensors"))
    }

    /// Names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    /// Shape of a tensor.
    ///
    /// # Panics
    /// If it is not there or has not `D` dims.
    pub fn shape<const D: usize>(&self, name: &str) -> [usize; D] {
        let view = self.0.view(name).expect("a golden tensor");
        view.shape.try_into().expect("a golden tensor of that many dims")
    }

    /// Values of a float tensor, row-major.
    ///
    /// # Panics
    /// If it is not there or holds something else.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        let view = self.0.view(name).expect("a golden tensor");
        view.to_tensor().to_f32().expect("a golden tensor of floats")
    }

    /// Values of an integer tensor, row-major.
    ///
    /// # Panics
    /// If it is not there or holds something else.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        let view = self.0.view(name).expect("a golden tensor");
        match view.dtype {
            HostDtype::I64 => {
                view.data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
            }
            HostDtype::I32 => {
                view.data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()
            }
            other => panic!("{name} holds {other:?}"),
        }
    }
}
