//! What can be wrong with a model from Hugging Face.

use std::path::PathBuf;

use burn_titan_core::checkpoint::{HostDtype, TensorError};
use burn_titan_core::hf::HfError;

/// What can be wrong with a model from Hugging Face, or with one that is to become one.
#[derive(Debug, thiserror::Error)]
pub enum ModelFolderError {
    /// The folder, or a file in it.
    #[error(transparent)]
    Folder(#[from] HfError),
    /// A tensor by itself.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A key of `config.json` is missing, or asks for something that this model does not do.
    #[error("{}: key `{key}` {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key; a dot leads into an object.
        key: String,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// A tensor has another shape than the config says.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, but the config needs {expected:?}: use the \
         config.json that belongs to these weights",
        folder.display()
    )]
    Shape {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the config.
        expected: Vec<usize>,
    },
    /// The matrices of a layer's experts are of several element types.
    #[error(
        "{}: tensor `{name}` is of {found}, but those of the experts before it are of {expected}: store all experts in \
         one element type",
        folder.display()
    )]
    ElementType {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        found: HostDtype,
        /// That of the first expert.
        expected: HostDtype,
    },
    /// The folder holds a tensor that the model has no place for.
    #[error(
        "{}: tensor `{name}` is no part of a {model} model of this config: use the config.json that \
         belongs to these weights",
        folder.display()
    )]
    Unexpected {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        name: String,
        /// The family.
        model: &'static str,
    },
    /// A name that no parameter of the model has.
    #[error(
        "`{name}` is not the name of a parameter of this {model} model: check the model config"
    )]
    Name {
        /// The name.
        name: String,
        /// The family.
        model: &'static str,
    },
    /// A parameter was not given.
    #[error("parameter `{name}` of the {model} model is missing: give all of them")]
    MissingParameter {
        /// The parameter.
        name: String,
        /// The family.
        model: &'static str,
    },
    /// A parameter has values, but no tensor at Hugging Face: what is written would not compute the same.
    #[error(
        "parameter `{name}` is not 0, but a {model} model of Hugging Face has no tensor for it, and would choose other \
         experts: train with `model.overrides.load_balance_rate: 0` to write such a folder"
    )]
    NoTensor {
        /// The parameter.
        name: String,
        /// The family.
        model: &'static str,
    },
    /// A weight does not consist of heads.
    #[error(
        "tensor `{name}`: shape {shape:?} is not [{n_heads} heads x {head_dim}, in] with an even \
         head_dim: give the head counts of this model"
    )]
    Heads {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Heads that were expected.
        n_heads: usize,
        /// Width of a head that was expected.
        head_dim: usize,
    },
}

impl From<ModelFolderError> for burn_titan_core::model::ModelError {
    fn from(error: ModelFolderError) -> Self {
        Self::new(error)
    }
}
