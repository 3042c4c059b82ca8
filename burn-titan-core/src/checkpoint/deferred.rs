//! Tensors that are made only when they are written.

use std::fmt;

use super::error::CheckpointError;
use super::tensor::{HostDtype, HostTensor, TensorError};

/// A tensor whose bytes are asked for when its turn comes, so that a save holds one at a time.
pub struct DeferredTensor<'a, E = CheckpointError> {
    name: String,
    dtype: HostDtype,
    shape: Vec<usize>,
    bytes: usize,
    read: Box<dyn FnOnce() -> Result<HostTensor, E> + 'a>,
}

impl<'a, E: From<CheckpointError>> DeferredTensor<'a, E> {
    /// The tensor that `read` will give; it must have this name, type and shape.
    ///
    /// # Errors
    /// [`TensorError::Overflow`].
    pub fn new(
        name: impl Into<String>,
        dtype: HostDtype,
        shape: &[usize],
        read: impl FnOnce() -> Result<HostTensor, E> + 'a,
    ) -> Result<Self, TensorError> {
        let (name, shape) = (name.into(), shape.to_vec());
        let Some(bytes) = dtype.bytes_of(&shape) else {
            return Err(TensorError::Overflow { name, shape, dtype });
        };
        Ok(Self { name, dtype, shape, bytes, read: Box::new(read) })
    }

    /// A tensor of type [`HostDtype::F32`] of the values that `values` will give.
    ///
    /// # Errors
    /// [`TensorError::Overflow`].
    pub fn f32(
        name: impl Into<String>,
        shape: &[usize],
        values: impl FnOnce() -> Vec<f32> + 'a,
    ) -> Result<Self, TensorError> {
        let (name, owned) = (name.into(), shape.to_vec());
        Self::new(name.clone(), HostDtype::F32, shape, move || {
            Ok(HostTensor::from_f32(name, &owned, &values()).map_err(CheckpointError::from)?)
        })
    }

    /// The bytes now.
    ///
    /// # Errors
    /// What the caller's `read` returned; [`CheckpointError::NotAsAnnounced`].
    pub(super) fn read(self) -> Result<HostTensor, E> {
        let tensor = (self.read)()?;
        if tensor.name() == self.name
            && tensor.dtype() == self.dtype
            && tensor.shape() == self.shape
        {
            return Ok(tensor);
        }
        Err(CheckpointError::NotAsAnnounced {
            name: self.name,
            dtype: self.dtype,
            shape: self.shape,
            found_name: tensor.name().into(),
            found_dtype: tensor.dtype(),
            found_shape: tensor.shape().to_vec(),
        }
        .into())
    }
}

impl<E> DeferredTensor<'_, E> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn dtype(&self) -> HostDtype {
        self.dtype
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<E> From<HostTensor> for DeferredTensor<'_, E> {
    /// A tensor that is there already.
    fn from(tensor: HostTensor) -> Self {
        Self {
            name: tensor.name().into(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            bytes: tensor.data().len(),
            read: Box::new(|| Ok(tensor)),
        }
    }
}

impl<E> fmt::Debug for DeferredTensor<'_, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} {:?}", self.name, self.dtype, self.shape)
    }
}
