//! Tensors that are made only when they are written.

use std::fmt;

use super::durable::{DurableWriter, FileError};
use super::error::CheckpointError;
use super::region::Region;
use super::tensor::{HostDtype, HostTensor, TensorError};

/// A tensor, or this rank's part of one, whose bytes are asked for when its turn comes, so that a save
/// holds one at a time.
pub struct DeferredTensor<'a, E = CheckpointError> {
    pub(super) part: Part,
    read: Box<dyn FnOnce() -> Result<Payload, E> + 'a>,
}

/// Which part of which tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) dtype: HostDtype,
    /// Of all of the tensor.
    pub(super) shape: Vec<usize>,
    pub(super) region: Region,
}

/// Elements on the host.
pub(super) enum Payload {
    /// Little-endian.
    Bytes(Vec<u8>),
    F32(Vec<f32>),
}

/// A tensor that is there, and belongs to nobody else: what a save behind the run's back writes.
pub(super) struct FetchedTensor {
    part: Part,
    payload: Result<Payload, CheckpointError>,
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
        let part = Part::new(name.into(), dtype, shape, None)?;
        let announced = part.clone();
        let read = move || Ok(Payload::Bytes(announced.accept(read()?)?.into_data()));
        Ok(Self { part, read: Box::new(read) })
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
        let part = Part::new(name.into(), HostDtype::F32, shape, None)?;
        Ok(Self { part, read: Box::new(move || Ok(Payload::F32(values()))) })
    }

    /// The part `region` of a tensor of type [`HostDtype::F32`] and of this `shape`; `values` will give
    /// its elements, in the order of the region. Of the ranks that hold an element, exactly one must
    /// give it.
    ///
    /// # Errors
    /// [`TensorError::Overflow`]; [`TensorError::Region`] where the region is not in the tensor.
    pub fn f32_region(
        name: impl Into<String>,
        shape: &[usize],
        region: Region,
        values: impl FnOnce() -> Vec<f32> + 'a,
    ) -> Result<Self, TensorError> {
        let part = Part::new(name.into(), HostDtype::F32, shape, Some(region))?;
        Ok(Self { part, read: Box::new(move || Ok(Payload::F32(values()))) })
    }

    /// The elements now.
    ///
    /// # Errors
    /// What the caller's `read` returned; [`CheckpointError::NotAsAnnounced`]; [`TensorError::Size`].
    pub(super) fn read(self) -> Result<Payload, E> {
        let payload = (self.read)()?;
        self.part.check_size(&payload).map_err(CheckpointError::from)?;
        Ok(payload)
    }
}

impl DeferredTensor<'_> {
    /// The tensor with its elements, or with what went wrong when they were asked for.
    pub(super) fn fetch(self) -> FetchedTensor {
        FetchedTensor { part: self.part.clone(), payload: self.read() }
    }
}

impl Part {
    fn new(
        name: String,
        dtype: HostDtype,
        shape: &[usize],
        region: Option<Region>,
    ) -> Result<Self, TensorError> {
        let shape = shape.to_vec();
        if dtype.bytes_of(&shape).is_none() {
            return Err(TensorError::Overflow { name, shape, dtype });
        }
        let checked = match region {
            Some(region) => region.check(&shape).map(|()| region),
            None => Region::whole(&shape),
        };
        match checked {
            Ok(region) => Ok(Self { name, dtype, shape, region }),
            Err(source) => Err(TensorError::Region { name, source }),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.region.elements() * self.dtype.size()
    }

    /// The tensor, if it is the one that was announced.
    fn accept(self, tensor: HostTensor) -> Result<HostTensor, CheckpointError> {
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
        })
    }

    fn check_size(&self, payload: &Payload) -> Result<(), TensorError> {
        let found = match payload {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::F32(values) => values.len() * size_of::<f32>(),
        };
        if found == self.bytes() {
            return Ok(());
        }
        Err(TensorError::Size {
            name: self.name.clone(),
            shape: self.region.shape(),
            dtype: self.dtype,
            expected: self.bytes(),
            found,
        })
    }
}

impl Payload {
    /// Appends the elements to a file, without a second copy of them.
    pub(super) fn write(&self, writer: &mut DurableWriter) -> Result<(), FileError> {
        /// Elements that are converted at once: 64 KiB stay in the cache.
        const PART: usize = 16 << 10;
        match self {
            Self::Bytes(bytes) => writer.write(bytes),
            Self::F32(values) => {
                let mut buffer = vec![0u8; PART * size_of::<f32>()];
                values.chunks(PART).try_for_each(|part| {
                    let buffer = &mut buffer[..size_of_val(part)];
                    for (bytes, value) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(part) {
                        *bytes = value.to_le_bytes();
                    }
                    writer.write(buffer)
                })
            }
        }
    }
}

impl From<FetchedTensor> for DeferredTensor<'static> {
    fn from(tensor: FetchedTensor) -> Self {
        let FetchedTensor { part, payload } = tensor;
        Self { part, read: Box::new(move || payload) }
    }
}

impl<E> From<HostTensor> for DeferredTensor<'_, E> {
    /// A tensor that is there already.
    fn from(tensor: HostTensor) -> Self {
        let (name, dtype, shape) = (tensor.name().into(), tensor.dtype(), tensor.shape().to_vec());
        let region = Region::whole_of(&tensor);
        let part = Part { name, dtype, shape, region };
        Self { part, read: Box::new(|| Ok(Payload::Bytes(tensor.into_data()))) }
    }
}

impl<E> fmt::Debug for DeferredTensor<'_, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Part { name, dtype, shape, region } = &self.part;
        write!(formatter, "{name}: {dtype} {shape:?}")?;
        if !region.is_whole(shape) {
            write!(formatter, ", {region:?}")?;
        }
        Ok(())
    }
}
