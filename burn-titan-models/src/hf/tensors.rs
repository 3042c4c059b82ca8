//! One of our parameters, and its tensors at Hugging Face.

use burn_titan_core::checkpoint::{HostDtype, HostTensor, TensorView};
use burn_titan_core::hf::HfFolder;

use super::{ModelFolderError, Names, Theirs};

/// The tensors of a parameter, made one at a time.
pub type HfTensors = Box<dyn Iterator<Item = Result<HostTensor, ModelFolderError>>>;

impl Names {
    /// The tensors that our parameter of this name and shape is written as; `None` where it is not one of the family.
    pub fn hf_names(&self, name: &str, shape: &[usize]) -> Option<Vec<String>> {
        let (prefix, theirs) = self.find(name)?;
        Some(match theirs {
            Theirs::Tensor(theirs) => vec![prefix + theirs],
            Theirs::Experts { matrix, .. } => {
                let experts = shape.first().copied().unwrap_or(0);
                (0..experts).map(|expert| of_expert(&prefix, expert, matrix)).collect()
            }
            Theirs::Zeros => vec![],
        })
    }

    /// Those that it is read from, if this folder has them.
    pub(super) fn stored(
        &self,
        folder: &HfFolder,
        name: &str,
        shape: &[usize],
    ) -> Option<Vec<String>> {
        if let (prefix, Theirs::Experts { stacked, .. }) = self.find(name)? {
            let all = of_all(&prefix, stacked);
            if folder.contains(&all) {
                return Some(vec![all]);
            }
        }
        self.hf_names(name, shape)
    }

    /// Reads one of our parameters from a Hugging Face folder: matrices as `[in, out]`, in the element type that is
    /// stored.
    ///
    /// # Errors
    /// [`ModelFolderError`] where a tensor is missing or has another shape than that of `shape`, which is ours, or
    /// where experts have several element types.
    pub fn read_parameter(
        &self,
        folder: &HfFolder,
        name: &str,
        shape: &[usize],
    ) -> Result<HostTensor, ModelFolderError> {
        let (prefix, theirs) = self.find(name).ok_or_else(|| self.unknown(name))?;
        match theirs {
            Theirs::Tensor(theirs) => {
                let turned = is_turned(name, shape);
                let mut expected = shape.to_vec();
                if turned {
                    expected.reverse();
                }
                let tensor = view(folder, &(prefix + theirs), &expected)?.to_tensor();
                let tensor = if turned { tensor.transposed()? } else { tensor };
                Ok(tensor.renamed(name))
            }
            Theirs::Zeros => {
                Ok(HostTensor::from_f32(name, shape, &vec![0.0; shape.iter().product()])?)
            }
            Theirs::Experts { matrix, stacked, part, parts } => {
                let &[experts, inputs, outputs] = shape else { return Err(self.unknown(name)) };
                let all = of_all(&prefix, stacked);
                if !folder.contains(&all) {
                    let one = |expert| {
                        let name = of_expert(&prefix, expert, matrix);
                        Ok(view(folder, &name, &[outputs, inputs])?.to_tensor())
                    };
                    return stack(name, shape, folder, (0..experts).map(one));
                }
                let view = view(folder, &all, &[experts, parts * outputs, inputs])?;
                let bytes = outputs * inputs * view.dtype.size();
                let one = |expert| {
                    let data = &view.data[(expert * parts + part) * bytes..][..bytes];
                    let shape = [outputs, inputs];
                    Ok(HostTensor::from_bytes(&all, view.dtype, &shape, data.to_vec())?)
                };
                stack(name, shape, folder, (0..experts).map(one))
            }
        }
    }

    /// One of our parameters, as its tensors under their Hugging Face names and in their layout. Of experts, a tensor
    /// for each.
    ///
    /// # Errors
    /// [`ModelFolderError::Name`] where it is not a parameter of the family, and [`ModelFolderError::NoTensor`] where
    /// Hugging Face has no place for its values.
    pub fn to_hf(&self, parameter: HostTensor) -> Result<HfTensors, ModelFolderError> {
        let name = parameter.name();
        let (prefix, theirs) = self.find(name).ok_or_else(|| self.unknown(name))?;
        match theirs {
            Theirs::Tensor(theirs) => {
                let turned = is_turned(name, parameter.shape());
                let tensor = if turned { parameter.transposed()? } else { parameter };
                Ok(Box::new(std::iter::once(Ok(tensor.renamed(prefix + theirs)))))
            }
            Theirs::Zeros if parameter.to_f32()?.iter().all(|value| *value == 0.0) => {
                Ok(Box::new(std::iter::empty()))
            }
            Theirs::Zeros => {
                Err(ModelFolderError::NoTensor { name: name.into(), model: self.model })
            }
            Theirs::Experts { matrix, .. } => {
                let &[experts, inputs, outputs] = parameter.shape() else {
                    return Err(self.unknown(name));
                };
                let bytes = inputs * outputs * parameter.dtype().size();
                Ok(Box::new((0..experts).map(move |expert| {
                    let name = of_expert(&prefix, expert, matrix);
                    let data = parameter.data()[expert * bytes..][..bytes].to_vec();
                    let shape = [inputs, outputs];
                    let ours = HostTensor::from_bytes(name, parameter.dtype(), &shape, data)?;
                    Ok(ours.transposed()?)
                })))
            }
        }
    }

    pub(super) fn unknown(&self, name: &str) -> ModelFolderError {
        ModelFolderError::Name { name: name.into(), model: self.model }
    }
}

/// The matrix of one expert.
fn of_expert(prefix: &str, expert: usize, matrix: &str) -> String {
    format!("{prefix}mlp.experts.{expert}.{matrix}.weight")
}

/// The matrices of all experts.
fn of_all(prefix: &str, stacked: &str) -> String {
    format!("{prefix}mlp.experts.{stacked}")
}

/// Whether our parameter is a matrix of a product: `[in, out]` here and `[out, in]` at Hugging Face. Embeddings are
/// `[vocab, dim]` in both.
fn is_turned(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && name != "tok_embeddings.weight"
}

/// A tensor of the folder, which has to be of this shape.
fn view<'a>(
    folder: &'a HfFolder,
    name: &str,
    expected: &[usize],
) -> Result<TensorView<'a>, ModelFolderError> {
    let view = folder.view(name)?;
    if view.shape == expected {
        return Ok(view);
    }
    Err(ModelFolderError::Shape {
        folder: folder.path().to_path_buf(),
        name: name.into(),
        found: view.shape.to_vec(),
        expected: expected.to_vec(),
    })
}

/// Our parameter of this name and shape out of the matrices of its experts, each of which is turned.
fn stack(
    name: &str,
    shape: &[usize],
    folder: &HfFolder,
    matrices: impl Iterator<Item = Result<HostTensor, ModelFolderError>>,
) -> Result<HostTensor, ModelFolderError> {
    let (mut data, mut stored) = (Vec::new(), None);
    for matrix in matrices {
        let matrix = matrix?;
        let expected = *stored.get_or_insert(matrix.dtype());
        if matrix.dtype() != expected {
            return Err(ModelFolderError::ElementType {
                folder: folder.path().to_path_buf(),
                name: matrix.name().into(),
                found: matrix.dtype(),
                expected,
            });
        }
        if data.is_empty() {
            data.reserve_exact(expected.bytes_of(shape).unwrap_or(0));
        }
        data.extend_from_slice(matrix.transposed()?.data());
    }
    Ok(HostTensor::from_bytes(name, stored.unwrap_or(HostDtype::F32), shape, data)?)
}
